# SPDX-License-Identifier: Apache-2.0
"""Benches: one runner, one results format, one report. See `runner` for how a bench is written."""
