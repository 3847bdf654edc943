# SPDX-License-Identifier: Apache-2.0
"""The control API: routes over :class:`tmem_host.service.Service`, versioned under ``/v1``.

On a Unix socket, and on TCP if somebody asks: :mod:`tmem_host.api.doors`.  A route is made by a router of
:func:`tmem_host.api.scoped.scoped_router`, so that it has a scope and is counted and audited.
"""
