// Choose images by dropping, pasting or picking files, and show small pictures of them.

import { element } from "./dom.js";

/** Watch a field for images; returns a function that lists them as `{name, uri}`. */
export function bindImages(view, onChange) {
  const field = view.querySelector(".image-field");
  const input = field.querySelector("input");
  const list = field.querySelector("ul");
  let images = [];

  async function add(files) {
    const pictures = [...files].filter((file) => file.type.startsWith("image/"));
    images.push(...(await Promise.all(pictures.map(readImage))));
    show();
  }

  function show() {
    list.replaceChildren(
      ...images.map((image, i) =>
        element(
          "li",
          {},
          element("img", { src: image.uri, alt: image.name }),
          element("button", { type: "button", class: "quiet", "aria-label": `Remove ${image.name}`, onclick: () => remove(i) }, "×"),
        ),
      ),
    );
    onChange();
  }

  function remove(index) {
    images = images.filter((_, i) => i !== index);
    show();
    input.focus();
  }

  input.addEventListener("change", () => add(input.files).then(() => (input.value = "")));
  for (const type of ["dragenter", "dragover", "dragleave", "drop"]) {
    field.addEventListener(type, (event) => {
      event.preventDefault(); // else the browser leaves the page for the file
      field.classList.toggle("over", type === "dragenter" || type === "dragover");
      if (type === "drop") add(event.dataTransfer.files);
    });
  }
  view.addEventListener("paste", (event) => {
    if (!field.hidden && event.clipboardData.files.length) add(event.clipboardData.files);
  });
  return () => (field.hidden ? [] : images);
}

function readImage(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve({ name: file.name, uri: reader.result });
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
