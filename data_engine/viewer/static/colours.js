// Colours of masks, as [red, green, blue] from 0 to 255.

const GOLDEN = 0.61803398875; // neighbouring numbers get hues far apart
const VIRIDIS = [
  [68, 1, 84],
  [59, 82, 139],
  [33, 145, 140],
  [94, 201, 98],
  [253, 231, 37],
];

/** A colour of its own for every number. */
export function ofNumber(number) {
  const hue = ((number * GOLDEN) % 1) * 6;
  const value = 0.98 - 0.12 * (number % 3);
  const saturation = 0.78 - 0.14 * (number % 2);
  const channel = (offset) => {
    const k = (offset + hue) % 6;
    return Math.round(255 * (value - value * saturation * Math.max(0, Math.min(k, 4 - k, 1))));
  };
  return [channel(5), channel(3), channel(1)];
}

/** From violet (0) over green to yellow (1): also told apart without red or green. */
export function ofShare(share) {
  const at = Math.max(0, Math.min(1, share)) * (VIRIDIS.length - 1);
  const below = Math.min(Math.floor(at), VIRIDIS.length - 2);
  return VIRIDIS[below].map((value, i) => Math.round(value + (VIRIDIS[below + 1][i] - value) * (at - below)));
}

export const css = ([red, green, blue]) => `rgb(${red} ${green} ${blue})`;
