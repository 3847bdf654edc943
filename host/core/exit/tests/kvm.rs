// SPDX-License-Identifier: Apache-2.0
//! Micro-VMs on the real /dev/kvm. Where there is none, each test says so and passes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::time::Duration;

use tmem_exit::clock::calibrate;
use tmem_exit::fleet::trace::Shape;
use tmem_exit::fleet::{BackendSpec, Channel, Class, FleetSpec, Report, run};
use tmem_exit::kinds::{self, Kind};
use tmem_exit::machine::open_kvm;
use tmem_exit::rig::Rig;
use tmem_exit::samples::Amount;
use tmem_exit::threads::usable_cpus;
use tmem_exit::work::StoreSite;
use tmem_exit::{ExitError, work};
use tmem_store::{Codec, NO_CAP, PoolSpec, Store, StoreOptions};

const AMOUNT: Amount = Amount { warmup: 2, samples: 5, time: Duration::from_secs(2) };
const PAGES: usize = 16;

fn corpus() -> Vec<u8> {
    // Compresses about 2:1, every page another.
    (0..PAGES * 4096).map(|i| if i % 64 < 30 { (i * 31 / 7 + i / 4096 * 17) as u8 } else { 7 }).collect()
}

fn kvm_is_missing() -> bool {
    open_kvm().err().inspect(|e| eprintln!("skipped: {e}")).is_some()
}

fn store(folder: &std::path::Path, limit: u64) -> Arc<Store> {
    let options = StoreOptions { limit, accept_loss: false, maintenance: true };
    Arc::new(Store::open(&folder.join("arena"), options).unwrap())
}

/// A rig with a store and a disk file in `folder`.
fn rig(folder: &std::path::Path) -> (Rig, Arc<Store>) {
    let mut rig = Rig::new(&corpus()).unwrap();
    let store = store(folder, 64 << 20);
    let vm = store.vm_create("exit", 0, NO_CAP, 100).unwrap();
    let pool = |codec| {
        let spec = PoolSpec { codec, ..PoolSpec::dense(64) };
        store.handle(vm, store.pool_create(vm, spec).unwrap()).unwrap()
    };
    rig.set_store(StoreSite { lz4: pool(Codec::Lz4), zstd: pool(Codec::Zstd) });
    // A file system without direct I/O, such as an old tmpfs, has no disk work.
    if let Err(e) = rig.set_disk(&folder.join("disk"), 32) {
        eprintln!("no disk work: {e}");
    }
    (rig, store)
}

#[test]
fn every_kind_gives_samples_or_says_why_not() {
    if kvm_is_missing() {
        return;
    }
    let mut rig = Rig::new(&corpus()).unwrap();
    for kind in kinds::ALL {
        match rig.turn(kind, "nothing", 0, AMOUNT) {
            Ok(turn) => {
                let ns = turn.samples.nanoseconds(rig.hz());
                assert!(!ns.is_empty() && ns.iter().all(|&n| n >= 0.0), "{}", kind.name());
                assert!(turn.cpu_ns >= 0.0);
            }
            Err(ExitError::NotOffered(why) | ExitError::Hung(why)) => {
                // These two run wherever KVM does.
                assert!(!matches!(kind, Kind::Bare | Kind::Pio16), "{why}");
                eprintln!("{}: {why}", kind.name());
            }
            Err(e) => panic!("{}: {e}", kind.name()),
        }
    }
}

#[test]
fn all_work_is_done_right_with_a_guest_and_without() {
    let folder = tempfile::tempdir().unwrap();
    let (mut rig, _store) = rig(folder.path());
    let ways: &[Kind] = if kvm_is_missing() { &[Kind::Bare] } else { &[Kind::Bare, Kind::Pio] };
    for &kind in ways {
        for (name, n) in [
            ("nothing", 0),
            ("delay", 3),
            ("device", 5),
            ("copy-hot", 0),
            ("copy-cold", 0),
            ("lz4-compress", 0),
            ("lz4-decompress", 0),
            ("zstd-compress", 0),
            ("zstd-decompress", 0),
            ("put", 0),
            ("put-zstd", 0),
            ("get", 0),
            ("flush", 0),
            ("put-bounce", 0),
            ("put-deferred", 0),
            ("put-batch", 128),
            ("get-batch", 128),
            ("disk-write", 0),
            ("disk-read", 0),
            ("cached-write", 0),
            ("cached-read", 0),
            ("uring-write", 0),
            ("uring-read", 0),
        ] {
            match rig.turn(kind, name, n, AMOUNT) {
                Ok(turn) => assert_eq!(turn.samples.nanoseconds(rig.hz()).len(), 5, "{name}"),
                Err(ExitError::NotOffered(why)) => eprintln!("{name}: {why}"),
                Err(e) => panic!("{} {name}: {e}", kind.name()),
            }
        }
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let mut rig = Rig::new(&corpus()).unwrap();
    let refused = |r: &mut Rig, kind, work, n| r.turn(kind, work, n, AMOUNT).err().map(|e| e.kind());
    assert_eq!(refused(&mut rig, Kind::Bare, "nonsense", 0), Some("invalid"));
    assert_eq!(refused(&mut rig, Kind::Cpuid, "put", 0), Some("invalid"));
    assert_eq!(refused(&mut rig, Kind::Bare, "put", 0), Some("not-offered"));
    assert_eq!(refused(&mut rig, Kind::Bare, "disk-read", 0), Some("not-offered"));
    assert_eq!(Rig::new(&[0; 100]).err().map(|e| e.kind()), Some("invalid"));
    let folder = tempfile::tempdir().unwrap();
    let (mut rig, _store) = self::rig(folder.path());
    for n in [0, work::FRAMES as u32 + 1] {
        assert_eq!(refused(&mut rig, Kind::Bare, "put-batch", n), Some("invalid"));
    }
    // Sixty-four pages cannot be flushed a hundred times.
    let much = Amount { warmup: 0, samples: 100, ..AMOUNT };
    assert_eq!(rig.turn(Kind::Bare, "flush", 0, much).err().map(|e| e.kind()), Some("failed"));
}

fn fleet(classes: Vec<Class>, channel: Channel, backend: &BackendSpec) -> Report {
    let spec = FleetSpec {
        shape: Shape { frames: 4, pages: 24, zipf: 0.9, length: 200 },
        classes,
        compute: Duration::from_micros(5),
        channel,
        quantum: Some(Duration::from_micros(500)),
        workers: 2,
        cpus: usable_cpus(),
        time: Duration::from_millis(400),
        seed: 3,
        corpus: Arc::new(corpus()),
        hz: calibrate(&[]).unwrap().hz,
    };
    run(&open_kvm().unwrap(), &spec, backend).unwrap()
}

fn plain(vms: usize) -> Class {
    Class { name: "plain".into(), vms, persistent: true, reservation: 0, cap: None, weight: 100 }
}

#[test]
fn a_fleet_pages_through_store_and_disk_and_every_page_comes_back() {
    if kvm_is_missing() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("disk"), b"").unwrap();
    for channel in [Channel::Sync, Channel::Async] {
        for disk in [false, true] {
            let path = folder.path().join(format!("{channel:?}"));
            std::fs::create_dir_all(&path).unwrap();
            let store = store(&path, 64 << 20);
            let backend = if disk {
                BackendSpec::Disk(folder.path().join("disk"))
            } else {
                BackendSpec::Store(store.clone())
            };
            let report = fleet(vec![plain(8)], channel, &backend);
            assert_eq!(report.classes[0].bad, 0);
            assert!(report.verified > 0);
            assert!(report.ops.iter().all(|&n| n > 0), "{channel:?} disk {disk}: {:?}", report.ops);
            assert!(!report.latency_ns.is_empty());
            drop(backend);
            drop(store);
            std::fs::remove_dir_all(&path).unwrap();
        }
    }
}

#[test]
fn caps_and_promises_hold_and_what_was_refused_is_not_missed_twice() {
    if kvm_is_missing() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path(), 16 << 20);
    let promise = tmem_store::worst_case_bytes(24);
    let cap = 8 << 10;
    let classes = vec![
        Class { reservation: promise, ..plain(2) },
        Class { name: "capped".into(), cap: Some(cap), ..plain(2) },
        Class { name: "cache".into(), persistent: false, ..plain(2) },
    ];
    let report = fleet(classes, Channel::Sync, &BackendSpec::Store(store));
    let [plain, capped, cache] = &report.classes[..] else { panic!("three classes") };
    assert_eq!((plain.bad, capped.bad, cache.bad), (0, 0, 0));
    assert_eq!((plain.no_room, plain.missed), (0, 0));
    assert!(capped.over_cap > 0 && capped.missed > 0);
    assert_eq!(capped.over_cap_bytes, 0);
}
