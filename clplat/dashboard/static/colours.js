// Figures in the colours and the width of the page. The pages of `clplat report` hold this as well.

const SEEN_ON_DARK = {"#222222": "#dddddd", "#000000": "#bbbbbb"};

function seen(style) {
  if (typeof style === "string") return SEEN_ON_DARK[style] ?? style;
  if (Array.isArray(style)) return style.map(seen);
  if (style === null || typeof style !== "object") return style;
  return Object.fromEntries(Object.entries(style).map(([key, value]) => [key, seen(value)]));
}

/** A figure that was made for wide white paper, on the page's. */
export function fitted(figure, dark, width) {
  const [back, text, grid] = dark ? ["#16181c", "#dddddd", "#3a3d44"] : ["#ffffff", "#222222", "#e5e5e5"];
  const layout = {...figure.layout, paper_bgcolor: back, plot_bgcolor: back};
  layout.font = {...layout.font, color: text};
  for (const name of Object.keys(layout)) {
    if (/^[xy]axis\d*$/.test(name)) layout[name] = {...layout[name], gridcolor: grid, linecolor: grid};
  }
  if (width < 640 && layout.showlegend) { // beside it names would leave no room to draw
    const names = figure.data.filter((trace) => trace.showlegend !== false).length;
    layout.height = (layout.height ?? 450) + 20 * names;
    layout.legend = {orientation: "h", yref: "container", y: 0, yanchor: "bottom", font: {size: 11}};
  }
  if (!dark) return {...figure, layout};
  // Plotly paints the chosen button almost white: grey is read on it and on the others.
  layout.updatemenus = layout.updatemenus?.map((menu) => ({...menu, bgcolor: back, font: {color: "#888888"}}));
  const data = figure.data.map((trace) => {
    const made = {...trace};
    for (const part of ["line", "marker"]) if (part in made) made[part] = seen(made[part]);
    for (const part of ["error_x", "error_y"]) if (part in made) made[part] = {...made[part], color: text};
    for (const part of ["header", "cells"]) {
      if (trace.type === "table") made[part] = {...made[part], fill: {color: back}, line: {color: grid}};
    }
    return made;
  });
  return {...figure, data, layout};
}
