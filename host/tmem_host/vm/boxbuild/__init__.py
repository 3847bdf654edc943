# SPDX-License-Identifier: Apache-2.0
"""Vagrant's box, and what vagrant/Vagrantfile is told about the machines that it brings up."""
