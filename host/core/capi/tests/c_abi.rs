// SPDX-License-Identifier: Apache-2.0
//! The functions as C calls them, and the header as a C compiler sees it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::ffi::{CStr, CString, c_char, c_void};
use std::path::Path;
use std::process::Command;
use std::ptr;

use tmem_abi::wire::{REPLY_SIZE, VERSION};
use tmem_abi::{Header, Op, Reply, Status};
use tmem_capi::device::Device;
use tmem_capi::*;
use tmem_engine::Segment;

const LIMIT: u64 = 64 << 20;
const PERSISTENT: u64 = 1;

const EXCLUSIVE: CapiOptions = CapiOptions { limit: LIMIT, features: u64::MAX, flags: 0, reserved: 0 };
const SHARED: CapiOptions = CapiOptions { flags: 1, ..EXCLUSIVE };

fn open_with(path: &Path, vm: &str, options: CapiOptions) -> Result<*mut Device, String> {
    let (path, vm) = (CString::new(path.to_str().unwrap()).unwrap(), CString::new(vm).unwrap());
    let mut error = [0 as c_char; 200];
    // SAFETY: strings, options and buffer live.
    let tmem =
        unsafe { tmem_capi_open(path.as_ptr(), vm.as_ptr(), &options, error.as_mut_ptr(), error.len()) };
    if tmem.is_null() {
        // SAFETY: always terminated.
        return Err(unsafe { CStr::from_ptr(error.as_ptr()) }.to_str().unwrap().into());
    }
    Ok(tmem)
}

fn open(path: &Path, vm: &str) -> Result<*mut Device, String> {
    open_with(path, vm, EXCLUSIVE)
}

/// One request, with what it sends; the reply and what it fetched.
fn ask(tmem: *mut Device, header: Header, sent: &[u8], room: usize) -> (Reply, Vec<u8>) {
    let raw = header.encode();
    let mut back = vec![0; REPLY_SIZE + room];
    let readable = [Segment::reading(&raw), Segment::reading(sent)];
    let (head, tail) = back.split_at_mut(7);
    let writable = [Segment::writing(head), Segment::writing(tail)];
    // SAFETY: all of it lives.
    let n = unsafe { tmem_capi_execute(tmem, readable.as_ptr(), 2, writable.as_ptr(), 2) };
    back.truncate(usize::try_from(n).unwrap());
    let data = back.split_off(REPLY_SIZE);
    (Reply::decode(back.as_slice().try_into().unwrap()).unwrap(), data)
}

fn hello() -> Header {
    Header { op: Op::Hello as u16, index: VERSION, argument: u64::MAX, cookie: 7, ..Header::default() }
}

fn status(tmem: *mut Device) -> CapiStatus {
    let mut status = CapiStatus::default();
    // SAFETY: open, and valid.
    assert_eq!(unsafe { tmem_capi_status(tmem, &mut status) }, 0);
    status
}

#[test]
fn pages_come_back_also_after_close() {
    let folder = tempfile::tempdir().unwrap();
    let arena = folder.path().join("arena");
    let tmem = open(&arena, "inline").unwrap();
    let (reply, _) = ask(tmem, Header { op: Op::Get as u16, cookie: 3, ..Header::default() }, &[], 0);
    assert_eq!((reply.status, reply.cookie), (Status::NotNegotiated, 3));
    let (reply, _) = ask(tmem, hello(), &[], 0);
    // SAFETY: open.
    assert_eq!((reply.status, reply.value), (Status::Ok, unsafe { tmem_capi_features(tmem) }));
    let new = Header { op: Op::NewPool as u16, argument: PERSISTENT, ..Header::default() };
    let pool = ask(tmem, new, &[], 0).0.value as u32;
    let page: Vec<u8> = (0..4096u32).map(|i| (i / 16) as u8).collect();
    let put = Header { op: Op::Put as u16, pool, index: 9, count: 1, ..Header::default() };
    assert_eq!(ask(tmem, put, &page, 0).0.status, Status::Ok);
    assert_eq!(status(tmem).pages, 1);
    // SAFETY: open; nobody uses it after.
    unsafe { tmem_capi_close(tmem) };

    let tmem = open(&arena, "inline").unwrap();
    assert_eq!(ask(tmem, hello(), &[], 0).0.status, Status::Ok);
    let get = Header { op: Op::Get as u16, pool, index: 9, count: 1, ..Header::default() };
    let (reply, data) = ask(tmem, get, &[], 4096);
    assert_eq!((reply.status, data), (Status::Ok, page));
    // SAFETY: open.
    unsafe { tmem_capi_reset(tmem) };
    assert_eq!(ask(tmem, get, &[], 4096).0.status, Status::NotNegotiated);
    let mut gets = 0;
    // SAFETY: open, and `gets` lives.
    unsafe { tmem_capi_counters(tmem, count_gets, (&raw mut gets).cast()) };
    assert_eq!(gets, 2);
    // SAFETY: as above.
    unsafe { tmem_capi_close(tmem) };
}

unsafe extern "C" fn count_gets(opaque: *mut c_void, name: *const c_char, value: u64) {
    // SAFETY: a string.
    if unsafe { CStr::from_ptr(name) } == c"get" {
        // SAFETY: it is `gets` of the test.
        unsafe { *opaque.cast::<u64>() = value };
    }
}

#[test]
fn a_reply_without_room_is_no_request() {
    let folder = tempfile::tempdir().unwrap();
    let tmem = open(&folder.path().join("arena"), "inline").unwrap();
    let raw = hello().encode();
    let readable = [Segment::reading(&raw)];
    // SAFETY: (both) open, and the pieces live.
    let n = unsafe { tmem_capi_execute(tmem, readable.as_ptr(), 1, ptr::null(), 0) };
    assert_eq!(n, -1);
    // An empty request has room for its refusal.
    let mut back = [0; REPLY_SIZE];
    let writable = [Segment::writing(&mut back)];
    // SAFETY: as above.
    let n = unsafe { tmem_capi_execute(tmem, ptr::null(), 0, writable.as_ptr(), 1) };
    assert_eq!(n, REPLY_SIZE as isize);
    // SAFETY: open.
    unsafe { tmem_capi_close(tmem) };
}

#[test]
fn quota_is_set_and_obeyed() {
    let folder = tempfile::tempdir().unwrap();
    let tmem = open(&folder.path().join("arena"), "inline").unwrap();
    let mut error = [0 as c_char; 100];
    let mut set = |quota: CapiQuota| {
        // SAFETY: open, and both live.
        unsafe { tmem_capi_set_quota(tmem, &quota, error.as_mut_ptr(), 100) }
    };
    let quota = CapiQuota { set: 0xf, weight: 5, reservation: 4096, cap: 1 << 20, frozen: 1, reserved: 0 };
    assert_eq!(set(quota), 0);
    let now = status(tmem);
    assert_eq!((now.weight, now.reservation, now.cap, now.frozen), (5, 4096, 1 << 20, 1));
    assert_eq!(set(CapiQuota { set: 1 << 9, ..quota }), -1);
    assert_eq!(set(CapiQuota { set: SET_RESERVATION_ONLY, reservation: LIMIT * 2, ..quota }), -1);
    assert_eq!(status(tmem).reservation, 4096);
    // SAFETY: terminated; then open.
    assert!(!unsafe { CStr::from_ptr(error.as_ptr()) }.is_empty());
    // SAFETY: as above.
    unsafe { tmem_capi_close(tmem) };
}

const SET_RESERVATION_ONLY: u32 = 1;

#[test]
fn an_arena_is_of_one_vm_and_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let arena = folder.path().join("arena");
    let tmem = open(&arena, "one").unwrap();
    assert!(open(&arena, "one").unwrap_err().contains("use"));
    // SAFETY: open.
    unsafe { tmem_capi_close(tmem) };
    assert!(open(&arena, "other").unwrap_err().contains("one"));
    // SAFETY: NULL is allowed.
    unsafe { tmem_capi_close(ptr::null_mut()) };
}

fn new_pool(tmem: *mut Device, flags: u64, uuid: [u8; 16]) -> Reply {
    let [low, high] = [&uuid[..8], &uuid[8..]].map(|half| u64::from_le_bytes(half.try_into().unwrap()));
    let header =
        Header { op: Op::NewPool as u16, argument: flags, object: [low, high, 0], ..Header::default() };
    ask(tmem, header, &[], 0).0
}

#[test]
fn devices_that_share_an_arena_are_channels_and_neighbours() {
    let folder = tempfile::tempdir().unwrap();
    let arena = folder.path().join("arena");
    let one = open_with(&arena, "one", SHARED).unwrap();
    // By another way to the same file.
    let again = open_with(&folder.path().join(".").join("arena"), "one", SHARED).unwrap();
    let other = open_with(&arena, "other", SHARED).unwrap();
    for (vm, options, why) in [
        ("one", EXCLUSIVE, "use"),
        ("one", CapiOptions { limit: LIMIT * 2, ..SHARED }, "limit"),
        ("one", CapiOptions { features: 1, ..SHARED }, "features"),
        ("one", CapiOptions { flags: 2, ..SHARED }, "does not know"),
        ("one", CapiOptions { reserved: 1, ..SHARED }, "does not know"),
    ] {
        assert!(open_with(&arena, vm, options).unwrap_err().contains(why), "{options:?}");
    }
    assert!(open_with(&folder.path().join("no/arena"), "one", SHARED).unwrap_err().contains("folder"));

    for device in [one, other] {
        assert_eq!(ask(device, hello(), &[], 0).0.status, Status::Ok);
    }
    let pool = new_pool(one, PERSISTENT, [0; 16]).value as u32;
    let page = [7; 4096];
    let put = Header { op: Op::Put as u16, pool, index: 9, count: 1, ..Header::default() };
    assert_eq!(ask(one, put, &page, 0).0.status, Status::Ok);
    let get = Header { op: Op::Get as u16, ..put };
    assert_eq!(ask(again, get, &[], 4096).0.status, Status::NotNegotiated);
    assert_eq!(ask(again, hello(), &[], 0).0.status, Status::Ok);
    assert_eq!(ask(again, get, &[], 4096).1, page);
    assert_eq!(ask(other, get, &[], 4096).0.status, Status::BadPool);

    // A pool that both have, once both may.
    let uuid = *b"two share a pool";
    let mut error = [0 as c_char; 100];
    for device in [one, other] {
        assert_eq!(new_pool(device, PERSISTENT | 2, uuid).status, Status::NotPermitted);
        // SAFETY: open, and both live.
        assert_eq!(unsafe { tmem_capi_authorise(device, &uuid, 1, error.as_mut_ptr(), 100) }, 0);
        assert_eq!(new_pool(device, PERSISTENT | 2, uuid).status, Status::Ok);
    }
    // SAFETY: as above.
    assert_eq!(unsafe { tmem_capi_authorise(one, &uuid, 0, error.as_mut_ptr(), 100) }, 0);

    // SAFETY: (both) open.
    unsafe { tmem_capi_lose(one, 1) };
    assert_eq!(ask(again, get, &[], 4096).0.status, Status::Lost);
    // SAFETY: as above.
    unsafe { tmem_capi_lose(one, 0) };
    assert_eq!(ask(again, get, &[], 4096).1, page);

    // The last closes it.
    for device in [one, other, again] {
        assert!(open(&arena, "one").unwrap_err().contains("use"));
        // SAFETY: open.
        unsafe { tmem_capi_close(device) };
    }
    let one = open_with(&arena, "one", SHARED).unwrap();
    assert_eq!(status(one).pages, 1);
    // SAFETY: open.
    unsafe { tmem_capi_close(one) };
}

#[test]
fn fewer_features_can_be_offered() {
    let folder = tempfile::tempdir().unwrap();
    let tmem =
        open_with(&folder.path().join("arena"), "old", CapiOptions { features: 1, ..EXCLUSIVE }).unwrap();
    // SAFETY: open.
    assert_eq!(unsafe { tmem_capi_features(tmem) }, 1);
    assert_eq!(ask(tmem, hello(), &[], 0).0.value, 1);
    // SAFETY: open.
    unsafe { tmem_capi_close(tmem) };
}

#[test]
fn the_header_compiles_and_has_our_layout() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("layout.c");
    let size =
        |what: &str, bytes: usize| format!("_Static_assert(sizeof(struct {what}) == {bytes}, \"\");\n");
    let text = String::from("#include \"tmem_capi.h\"\n")
        + &size("tmem_capi_options", size_of::<CapiOptions>())
        + &size("tmem_capi_status", size_of::<CapiStatus>())
        + &size("tmem_capi_quota", size_of::<CapiQuota>())
        + &size("iovec", size_of::<Segment>())
        + &format!("_Static_assert(TMEM_CAPI_VERSION == {}u, \"\");\n", tmem_capi_version());
    std::fs::write(&source, text).unwrap();
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("include");
    let done = Command::new("cc")
        .args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-I"])
        .args([&include, &source])
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}
