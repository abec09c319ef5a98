// Rows of the list of images: a thumbnail, the id, and how its masks are.

import { pictureAddress } from "./api.js";
import { count, score } from "./facts.js";

const THUMBNAIL = 160;
const ROW = 60;

/** The parts of a VirtualList over an ImageList. */
export function imageRows(list) {
  return {
    rowHeight: ROW,
    create() {
      const row = document.createElement("div");
      row.innerHTML = '<span class="thumb"><img alt="" hidden /></span><span class="name"></span><span class="muted about"></span>';
      const img = row.querySelector("img");
      img.addEventListener("load", () => (img.hidden = false));
      img.addEventListener("error", () => row.classList.add("gone"));
      return row;
    },
    fill(row, index) {
      const image = list.get(index);
      const img = row.querySelector("img");
      if (row.dataset.image !== image?.id) {
        img.hidden = true;
        img.removeAttribute("src");
        row.classList.remove("gone");
      }
      row.classList.toggle("failed", Boolean(image?.error));
      row.classList.toggle("waiting", !image);
      row.dataset.image = image?.id ?? "";
      row.querySelector(".name").textContent = image?.id ?? "…";
      row.querySelector(".name").title = image?.id ?? "";
      row.querySelector(".about").textContent = image ? about(image) : "";
    },
    settled(row, index) {
      const image = list.get(index);
      const img = row.querySelector("img");
      if (image && image.width && !img.getAttribute("src")) img.src = pictureAddress(0, image.id, THUMBNAIL, image.position);
    },
  };
}

function about(image) {
  if (image.error) return `failed: ${image.error}`;
  if (!image.masks) return "no masks";
  return `${count(image.masks, "mask")}   IoU ${score(image.predicted_iou).slice(0, 4)}   stab. ${score(image.stability).slice(0, 4)}`;
}
