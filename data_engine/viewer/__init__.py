"""A local web page over datasets of masks: `data-engine view OUTPUT [--against OTHER]`.

| module | noun |
|---|---|
| `run.py` | `ViewedRun`: a dataset as the page needs it: its index, one image's masks, its originals |
| `index.py`, `order.py` | what lists, sorts and searches need of every image, slice by slice |
| `originals.py`, `tar_slice.py` | one image's encoded bytes, without reading the input through |
| `pictures.py` | encoded bytes -> a picture a browser shows, upright and downscaled |
| `api.py` | the routes under `/api`, JSON |
| `audit_api.py`, `correct_api.py` | the pages where masks are judged and corrected, and their routes |
| `known_edits.py` | everybody's edits, as far as this server knows them |
| `own_order.py`, `turns.py` | which image comes next for whom, and who is next at the model |
| `guard.py` | who may ask: token, host, origin; and what a page may load |
| `app.py`, `server.py` | all of it as an ASGI application; the socket it is served from |
| `static/` | the page: plain modules without a build step |

Masks travel as COCO compressed run lengths and are decoded and drawn in the browser alone.

**Adding pages and routes.** A module offers `routes(runs: Sequence[ViewedRun]) -> list[BaseRoute]` and is named in
`app.EXTRA`; the guard covers its routes like all others (token, host, same origin; `POST` only from the page itself):

    # audit_api.py
    def routes(runs):
        return [Route("/api/audit/sample", api.answered(sample)), Route("/audit", page("audit.html"))]

`api.answered` turns errors into JSON; `pages.page` serves a page of `static/`. `run.find(image_id)` gives the commit
record, the row in its slice and the position of an image (KeyError without it), `run.image(image_id)` its row and mask
columns as `/api/image` sends them, `run.index.records` the commits. Everything in `static/` is served under `/static/`.
Styles and scripts must be files: the content security policy allows nothing inline and nothing from elsewhere. The page
links to the routes that are no API (`GET /api/info`, "pages").

**Drawing masks elsewhere.** `static/rle.js` decodes run lengths and knows nothing else: `decode(counts, height, width)`
-> `Mask` (`runs`, `area`, `contains(x, y)`), `iou(a, b)`. `static/overlay.js` draws: `new Overlay(parent)`,
`overlay.load(image)` with an answer of `/api/image`, `overlay.show(indices, colourOf)`, `overlay.highlight(index)`
(null: none), `overlay.at(x, y)`. `static/stage.js` is picture and overlay with zoom and pan: `new Stage(root, parts)`,
`stage.load(image, address)`, `stage.draw(indices, colourOf)`; with `grab` among its parts, presses of the pointer are
the page's. `static/paint.js` paints on masks and encodes them: `stroke`, `union`, `without`, `encode(mask)`.
`static/theme.css` has colours, type and controls, and what the overlay's canvases need; a stage's own layout is in
`static/stage.css`.
"""
