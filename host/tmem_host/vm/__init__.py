# SPDX-License-Identifier: Apache-2.0
"""Virtual machines: guest images, an accelerator that works, drivers, and the client of the agent inside."""
