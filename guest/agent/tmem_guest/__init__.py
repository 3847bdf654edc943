# SPDX-License-Identifier: Apache-2.0
"""Agent inside a guest: answers the host over one virtio-serial port. Standard library only."""

PROTOCOL_VERSION = 1
PORT_NAME = "org.kvm-tmem.agent.0"
