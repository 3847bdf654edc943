// SPDX-License-Identifier: Apache-2.0
// The dialog that changes what a VM may take. A change that somebody else made meanwhile is not written over.

import { call } from "./api.js";
import { put, size } from "./draw.js";

const dialog = document.getElementById("settings");
const form = dialog.querySelector("form");
const problem = dialog.querySelector(".problem");
let vm = null;
let after = null;

/** Opens the dialog for a VM as it was last seen; calls `done` when it was changed. */
export function ask(found, done) {
  vm = found;
  after = done;
  put(dialog.querySelector("h2"), `Settings of ${vm.name}`);
  form.cap.value = vm.cap === null ? "" : size(vm.cap);
  form.reservation.value = size(vm.reservation);
  form.weight.value = vm.weight;
  form.codec.value = vm.codec;
  form.poll_us.value = vm.poll_us;
  put(problem, "");
  dialog.showModal();
}

form.addEventListener("submit", async (event) => {
  if (event.submitter?.value === "cancel") return;
  event.preventDefault();
  const body = {
    cap: form.cap.value.trim() || null,
    reservation: form.reservation.value.trim(),
    weight: Number(form.weight.value),
    codec: form.codec.value,
    poll_us: Number(form.poll_us.value),
  };
  try {
    await call("PUT", `/v1/vms/${encodeURIComponent(vm.name)}/settings`, { body, headers: { "If-Match": `"${vm.version}"` } });
    dialog.close();
    await after();
  } catch (error) {
    put(problem, error.status === 412 ? "Somebody else changed it meanwhile: close this and look again." : error.message);
  }
});
