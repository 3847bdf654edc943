// SPDX-License-Identifier: Apache-2.0
//! What each vhost-user message does to a session.

use std::fs::File;

use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVirtioFeatures, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Backend, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use super::{Addresses, Session};
use crate::config::MAX_QUEUE_SIZE;
use crate::event::Event;
use crate::memory::{MAX_REGIONS, Memory, RegionSpec};

fn event(fd: Option<File>) -> Result<Option<Event>> {
    fd.map(|file| Event::from_frontend(file).ok_or(Error::IncorrectFds)).transpose()
}

fn spec(region: &VhostUserMemoryRegion) -> RegionSpec {
    RegionSpec {
        guest: region.guest_phys_addr,
        size: region.memory_size,
        user: region.user_addr,
        offset: region.mmap_offset,
    }
}

fn unsupported<T>() -> Result<T> {
    Err(Error::InvalidOperation("not offered by this device"))
}
impl VhostUserBackendReqHandlerMut for Session {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.end();
        self.features = 0;
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.reset_owner()?;
        // Rings come up disabled again.
        self.vrings.iter_mut().for_each(|vring| vring.enabled = false);
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offered())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !self.offered() != 0 {
            return Err(Error::InvalidParam);
        }
        self.features = features;
        // Without the protocol features there is no SET_VRING_ENABLE: rings are enabled from the start.
        if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            for queue in 0..self.vrings.len() {
                self.vrings[queue].enabled = true;
                self.start_if_ready(queue)?;
            }
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let table = regions.iter().map(spec).zip(files).collect();
        self.adopt(Memory::from_table(table))?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let (queue, vring) = self.vring(index)?;
        let size = u16::try_from(num).map_err(|_| Error::InvalidParam)?;
        if !size.is_power_of_two() || size > MAX_QUEUE_SIZE {
            return Err(Error::InvalidParam);
        }
        if vring.running && vring.size != size {
            return Err(Error::InvalidParam);
        }
        vring.size = size;
        self.start_if_ready(queue)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let (queue, vring) = self.vring(index)?;
        let was_running = vring.running;
        vring.addresses = Some(Addresses { desc: descriptor, avail: available, used });
        if was_running {
            self.stop(queue)?;
        }
        self.start_if_ready(queue)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let (queue, vring) = self.vring(index)?;
        // Kept only to be given back: a ring starts where its used index says, see Ring::start().
        vring.base = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        if vring.running {
            vring.kick = None;
            self.stop(queue)?;
        }
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let (queue, _) = self.vring(index)?;
        let base = self.stop(queue)?;
        let vring = &mut self.vrings[queue];
        vring.base = base.unwrap_or(vring.base);
        vring.kick = None;
        Ok(VhostUserVringState::new(index, u32::from(vring.base)))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let (queue, vring) = self.vring(u32::from(index))?;
        // A frontend that wants the ring polled without any descriptor is not served.
        let kick = event(fd)?.ok_or(Error::IncorrectFds)?;
        let was_running = vring.running;
        vring.kick = Some(kick);
        if was_running {
            self.stop(queue)?;
        }
        self.start_if_ready(queue)
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let (queue, vring) = self.vring(u32::from(index))?;
        let call = event(fd)?;
        vring.call = call.clone();
        self.home.remember_calls(&self.vrings);
        self.home.on_worker(queue, move |worker, slot| worker.set_call(slot, call))
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let (queue, vring) = self.vring(u32::from(index))?;
        let err = event(fd)?;
        vring.err = err.clone();
        self.home.remember_calls(&self.vrings);
        self.home.on_worker(queue, move |worker, slot| worker.set_err(slot, err))
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        let mut offered = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
        offered.set(VhostUserProtocolFeatures::RESET_DEVICE, self.home.device.wants_resets());
        Ok(offered)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        if features & !self.get_protocol_features()?.bits() != 0 {
            return Err(Error::InvalidParam);
        }
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.vrings.len() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let (queue, vring) = self.vring(index)?;
        vring.enabled = enable;
        if enable {
            return self.start_if_ready(queue);
        }
        if vring.running {
            let base = self.stop(queue)?;
            let vring = &mut self.vrings[queue];
            vring.base = base.unwrap_or(vring.base);
        }
        Ok(())
    }

    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let space = self.home.device.config_space();
        // Frontends ask for their own idea of the structure, which grows: what is not known reads as zero.
        Ok((0..size as usize).map(|i| space.get(offset as usize + i).copied().unwrap_or(0)).collect())
    }

    fn set_config(&mut self, offset: u32, data: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        self.home.device.write_config(offset as usize, data);
        Ok(())
    }

    fn set_backend_req_fd(&mut self, _backend: Backend) {}

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> Result<()> {
        unsupported()
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        unsupported()
    }

    fn get_inflight_fd(&mut self, _inflight: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        unsupported()
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        unsupported()
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        fd: File,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        let grown = self.memory.with(spec(region), fd);
        self.adopt(grown)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let shrunk = self.memory.without(region.guest_phys_addr, region.user_addr, region.memory_size);
        self.adopt(shrunk)
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> Result<Option<File>> {
        unsupported()
    }

    fn check_device_state(&mut self) -> Result<()> {
        unsupported()
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        unsupported()
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        unsupported()
    }
}
