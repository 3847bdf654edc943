# SPDX-License-Identifier: Apache-2.0
"""The control API: routes over :class:`tmem_host.service.Service`, on a Unix socket, versioned under ``/v1``."""
