// What is known of an image or a mask, as rows of a description list.

const number = new Intl.NumberFormat("en-US");

export const share = (value) => {
  const percent = 100 * value;
  return `${percent >= 10 ? percent.toFixed(0) : percent >= 0.1 ? percent.toFixed(1) : percent.toPrecision(2)} %`;
};
export const score = (value) => (value === null || value === undefined ? "–" : value.toFixed(3));
export const count = (value, what) => `${number.format(value)} ${what}${value === 1 ? "" : /[xs]$/.test(what) ? "es" : "s"}`;
export const grouped = (value) => number.format(value);

/** [name, value] pairs of an image. */
export function ofImage(image) {
  const rejected = ["iou", "stability", "edge", "nms", "area"]
    .filter((reason) => image[`n_rejected_${reason}`])
    .map((reason) => `${grouped(image[`n_rejected_${reason}`])} ${{ iou: "IoU", nms: "duplicate", edge: "crop edge" }[reason] ?? reason}`);
  const rows = [["id", image.image_id]];
  if (image.width) rows.push(["size", `${grouped(image.width)} × ${grouped(image.height)}`]);
  if (image.status === "failed") rows.push(["failed", `${image.error_type}: ${image.error_message}`]);
  else rows.push(["masks", `${grouped(image.n_masks)} of ${grouped(image.n_candidates)} candidates`]);
  if (rejected.length) rows.push(["rejected", rejected.join(", ")]);
  if (image.generate_ms !== null) rows.push(["time", `${grouped(Math.round(image.decode_ms ?? 0))} + ${grouped(Math.round(image.generate_ms))} ms (decode, generate)`]);
  rows.push(["shard", image.shard], ["original", image.uri]);
  return rows;
}

/** [name, value] pairs of one mask. */
export function ofMask(image, index) {
  const { masks } = image;
  const at = (name) => masks[name][index];
  const rows = [
    ["predicted IoU", score(at("predicted_iou"))],
    ["stability", score(at("stability_score"))],
    ["area", `${grouped(at("area"))} px, ${share(at("area") / (image.width * image.height))}`],
    ["box", `${at("bbox_x")}, ${at("bbox_y")}, ${at("bbox_w")} × ${at("bbox_h")}`],
    ["point", `${at("point_x")}, ${at("point_y")}`],
    ["crop", at("crop_layer") === 0 ? "the whole image" : `layer ${at("crop_layer")}: ${at("crop_x")}, ${at("crop_y")}, ${at("crop_w")} × ${at("crop_h")}`],
  ];
  if (at("label") !== null) rows.push(["label", at("label_score") === null ? at("label") : `${at("label")} (${score(at("label_score"))})`]);
  rows.push(["run lengths", `${grouped(at("counts").length)} bytes`]);
  return rows;
}

/** One line for a pointer. */
export const inShort = (image, index) =>
  `#${image.masks.mask_id[index]}  IoU ${score(image.masks.predicted_iou[index])}  stability ${score(image.masks.stability_score[index])}  ${share(image.masks.area[index] / (image.width * image.height))}`;

/** Puts pairs into a <dl>. */
export function fill(list, pairs) {
  list.replaceChildren(
    ...pairs.flatMap(([name, value]) => {
      const term = document.createElement("dt");
      const meaning = document.createElement("dd");
      term.textContent = name;
      meaning.textContent = value;
      return [term, meaning];
    }),
  );
}
