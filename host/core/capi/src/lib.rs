// SPDX-License-Identifier: Apache-2.0
//! The C ABI of the core: `include/tmem_capi.h` is its manual, and each function here is one of it.
//!
//! Pointers become references and slices here and nowhere else; [`device`] does the work. No panic
//! crosses into C: each function catches it.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod arena;
pub mod device;

use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use arena::DeviceOptions;
use device::Device;
use tmem_engine::Segment;
use tmem_store::{NO_CAP, QuotaChange};

const VERSION: u32 = 2;
const SHARE: u32 = 1 << 0;
const SET_RESERVATION: u32 = 1 << 0;
const SET_CAP: u32 = 1 << 1;
const SET_WEIGHT: u32 = 1 << 2;
const SET_FROZEN: u32 = 1 << 3;
/// The header says so too.
const _: () = assert!(NO_CAP == u64::MAX);

/// `struct tmem_capi_options`.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub struct CapiOptions {
    /// Of the arena, bytes.
    pub limit: u64,
    /// What HELLO may agree on.
    pub features: u64,
    /// `TMEM_CAPI_SHARE`.
    pub flags: u32,
    /// 0.
    pub reserved: u32,
}

/// `struct tmem_capi_status`.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub struct CapiStatus {
    /// Of the arena, bytes.
    pub limit: u64,
    /// Pages of the VM.
    pub pages: u64,
    /// Bytes charged to it.
    pub held: u64,
    /// Bytes of compressed data.
    pub compressed: u64,
    /// Bytes that the file takes.
    pub arena: u64,
    /// Bytes promised.
    pub reservation: u64,
    /// Bytes never exceeded; `u64::MAX`: no cap.
    pub cap: u64,
    /// Share of ephemeral memory.
    pub weight: u32,
    /// 1: puts are refused.
    pub frozen: u32,
}

/// `struct tmem_capi_quota`.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub struct CapiQuota {
    /// Which of the others to change.
    pub set: u32,
    /// Share of ephemeral memory.
    pub weight: u32,
    /// Bytes promised.
    pub reservation: u64,
    /// Bytes never exceeded.
    pub cap: u64,
    /// 1: puts are refused.
    pub frozen: u32,
    /// 0.
    pub reserved: u32,
}

/// Runs `f`; what it panics with was printed by the hook.
fn caught<T>(f: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|_| Err("the core failed: see what it printed".into()))
}

/// Writes a reason for C, cut to what there is room for.
///
/// # Safety
/// `error` is NULL or valid for writes of `size` bytes.
unsafe fn explain(error: *mut c_char, size: usize, reason: &str) {
    if error.is_null() || size == 0 {
        return;
    }
    let bytes: Vec<u8> = reason.bytes().filter(|b| *b != 0).take(size - 1).collect();
    // SAFETY: by the caller; a byte is left for the terminator.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), error.cast(), bytes.len());
        *error.add(bytes.len()) = 0;
    }
}

/// 0, or -1 with the reason.
///
/// # Safety
/// As [`explain`].
unsafe fn answer(done: Result<(), String>, error: *mut c_char, size: usize) -> c_int {
    let Err(reason) = done else { return 0 };
    // SAFETY: by the caller.
    unsafe { explain(error, size, &reason) };
    -1
}

/// # Safety
/// NULL or a string that outlives the result.
unsafe fn string<'a>(text: *const c_char, what: &str) -> Result<&'a CStr, String> {
    if text.is_null() {
        return Err(format!("no {what} is given"));
    }
    // SAFETY: by the caller.
    Ok(unsafe { CStr::from_ptr(text) })
}

/// # Safety
/// `first` is valid for reads of `count` pieces, unless `count` is 0.
unsafe fn pieces<'a>(first: *const Segment, count: usize) -> &'a [Segment] {
    if count == 0 {
        return &[];
    }
    // SAFETY: by the caller; Segment is laid out as struct iovec.
    unsafe { std::slice::from_raw_parts(first, count) }
}

/// Version of the library.
#[unsafe(no_mangle)]
pub extern "C" fn tmem_capi_version() -> u32 {
    VERSION
}

/// Opens an arena; NULL with a reason in `error`.
///
/// # Safety
/// As the header says of its arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tmem_capi_open(
    path: *const c_char,
    vm: *const c_char,
    options: *const CapiOptions,
    error: *mut c_char,
    error_size: usize,
) -> *mut Device {
    let opened = caught(|| {
        // SAFETY: (both) by the caller.
        let path = unsafe { string(path, "arena") }?;
        // SAFETY: as above.
        let vm =
            unsafe { string(vm, "VM") }?.to_str().map_err(|_| "the VM's name is not UTF-8".to_string())?;
        let path = Path::new(OsStr::from_bytes(path.to_bytes()));
        // SAFETY: by the caller.
        let options = unsafe { &*options };
        if options.flags & !SHARE != 0 || options.reserved != 0 {
            return Err("the options have fields that this library does not know".into());
        }
        let share = options.flags & SHARE != 0;
        let options = DeviceOptions { limit: options.limit, features: options.features, share };
        Device::open(path, vm, options).map_err(|e| e.to_string())
    });
    match opened {
        Ok(device) => Box::into_raw(Box::new(device)),
        Err(reason) => {
            // SAFETY: by the caller.
            unsafe { explain(error, error_size, &reason) };
            std::ptr::null_mut()
        }
    }
}

/// Closes an arena. NULL is nothing.
///
/// # Safety
/// `tmem` came from [`tmem_capi_open`] and is used by nobody any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tmem_capi_close(tmem: *mut Device) {
    if tmem.is_null() {
        return;
    }
    // SAFETY: by the caller.
    let device = unsafe { Box::from_raw(tmem) };
    let _ = caught(|| {
        drop(device);
        Ok(())
    });
}

/// Features that HELLO may agree on.
///
/// # Safety
/// `tmem` is open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tmem_capi_features(tmem: *const Device) -> u64 {
    // SAFETY: by the caller.
    unsafe { &*tmem }.session().engine().features()
}

/// Executes one request.
///
/// # Safety
/// `tmem` is open; the pieces are as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tmem_capi_execute(
    tmem: *mut Device,
    readable: *const Segment,
    readable_count: usize,
    writable: *const Segment,
    writable_count: usize,
) -> isize {
    // SAFETY: (all) by the caller. execute() does not panic.
    let done = unsafe { (*tmem).execute(pieces(readable, readable_count), pieces(writable, writable_count)) };
    done.map_or(-1, |bytes| bytes as isize)
}

/// The device was reset.
///
/// # Safety
/// `tmem` is open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tmem_capi_reset(tmem: *mut Device) {
    // SAFETY: by the caller.
    unsafe { &*tmem }.session().reset();
}

/// What the VM holds and may hold.
///
/// # Safety
/// `tmem` is open, `status` valid for writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tmem_capi_status(tmem: *const Device, status: *mut CapiStatus) -> c_int {
    let found = caught(|| {
        // SAFETY: by the caller.
        let device = unsafe { &*tmem };
        let vm = device.vm().map_err(|e| e.to_string())?;
        let (holding, totals) = (device.holding(&vm), device.store().totals());
        Ok(CapiStatus {
            limit: totals.limit,
            pages: holding.pages,
            held: vm.account.held(),
            compressed: holding.compressed,
            arena: totals.file,
            reservation: vm.account.reservation(),
            cap: vm.account.cap(),
            weight: vm.account.weight(),
            frozen: u32::from(vm.account.frozen()),
        })
    });
    let Ok(found) = found else { return -1 };
    // SAFETY: by the caller.
    unsafe { status.write(found) };
    0
}

/// Calls back with every counter.
///
/// # Safety
/// `tmem` is open; `each` may be called with `opaque`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tmem_capi_counters(
    tmem: *const Device,
    each: unsafe extern "C" fn(*mut c_void, *const c_char, u64),
    opaque: *mut c_void,
) {
    let _ = caught(|| {
        // SAFETY: by the caller.
        for (name, value) in unsafe { &*tmem }.session().counters().snapshot() {
            let name = CString::new(name).map_err(|e| e.to_string())?;
            // SAFETY: by the caller.
            unsafe { each(opaque, name.as_ptr(), value) };
        }
        Ok(())
    });
}

/// Changes what the VM may hold.
///
/// # Safety
/// `tmem` is open, `quota` valid; `error` as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tmem_capi_set_quota(
    tmem: *mut Device,
    quota: *const CapiQuota,
    error: *mut c_char,
    error_size: usize,
) -> c_int {
    let done = caught(|| {
        // SAFETY: (both) by the caller.
        let (device, quota) = unsafe { (&*tmem, &*quota) };
        let known = SET_RESERVATION | SET_CAP | SET_WEIGHT | SET_FROZEN;
        if quota.set & !known != 0 || quota.reserved != 0 {
            return Err("the quota has fields that this library does not know".into());
        }
        let is_set = |bit: u32| quota.set & bit != 0;
        let change = QuotaChange {
            reservation: is_set(SET_RESERVATION).then_some(quota.reservation),
            promise: 0,
            cap: is_set(SET_CAP).then_some(quota.cap),
            weight: is_set(SET_WEIGHT).then_some(quota.weight),
        };
        device.set(change, is_set(SET_FROZEN).then_some(quota.frozen != 0)).map_err(|e| e.to_string())
    });
    // SAFETY: by the caller.
    unsafe { answer(done, error, error_size) }
}

/// Lets the VM into a shared pool, or no longer.
///
/// # Safety
/// `tmem` is open, `uuid` valid for reads of 16 bytes; `error` as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tmem_capi_authorise(
    tmem: *mut Device,
    uuid: *const [u8; 16],
    allow: c_int,
    error: *mut c_char,
    error_size: usize,
) -> c_int {
    let done = caught(|| {
        // SAFETY: (both) by the caller.
        let (device, uuid) = unsafe { (&*tmem, *uuid) };
        device.authorise(uuid, allow != 0).map_err(|e| e.to_string())
    });
    // SAFETY: by the caller.
    unsafe { answer(done, error, error_size) }
}

/// Loses pages on purpose.
///
/// # Safety
/// `tmem` is open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tmem_capi_lose(tmem: *mut Device, every: u32) {
    // SAFETY: by the caller.
    unsafe { &*tmem }.session().engine().faults().lose_every(every);
}
