// Open a modal dialog of the page, and wait for its end.

const SUBMITTED = "submitted";

/** Show a dialog; resolves with whether its form was submitted, which `onSubmit` sees first. */
export function openDialog(dialog, onSubmit = () => {}) {
  const form = dialog.querySelector("form");
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    form.onsubmit = (event) => {
      event.preventDefault();
      onSubmit();
      dialog.close(SUBMITTED);
    };
    form.cancel.onclick = () => dialog.close();
    dialog.onclose = () => resolve(dialog.returnValue === SUBMITTED);
  });
}
