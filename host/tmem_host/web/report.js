// SPDX-License-Identifier: Apache-2.0
// A run's report in the place of this page: it is a page of its own, but a link to it could carry no token.

import { text } from "./api.js";

try {
  const run = Number(new URLSearchParams(location.search).get("run"));
  const report = await text(`/v1/runs/${run}/report`);
  document.open();
  // Its icon goes with it: a browser without one asks for /favicon.ico.
  document.write(report.replace("</head>", '<link rel="icon" href="icon.svg" type="image/svg+xml"></head>'));
  document.close();
} catch (error) {
  document.getElementById("said").textContent = error.message;
}
