// SPDX-License-Identifier: Apache-2.0
//! A fleet through the store: `cargo run --release -p tmem-exit --example fleet VMS sync|async|yield`
#![allow(clippy::unwrap_used)] // An example ends at the first thing that is wrong.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tmem_exit::clock::calibrate;
use tmem_exit::fleet::trace::Shape;
use tmem_exit::fleet::{BackendSpec, Channel, Class, FleetSpec, run};
use tmem_exit::machine::open_kvm;
use tmem_exit::threads::usable_cpus;
use tmem_store::{Store, StoreOptions};

fn main() {
    let vms = std::env::args().nth(1).map_or(10, |a| a.parse().unwrap());
    let channel = if std::env::args().any(|a| a == "async") { Channel::Async } else { Channel::Sync };
    let path = Path::new("/dev/shm/tmem-example-arena");
    let options = StoreOptions { limit: 1 << 30, accept_loss: false, maintenance: true };
    let store = Arc::new(Store::open(path, options).unwrap());
    let corpus: Vec<u8> =
        (0..4096 * 64).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 20) as u8 & 0x37).collect();
    let spec = FleetSpec {
        shape: Shape { frames: 16, pages: 64, zipf: 0.9, length: 512 },
        classes: vec![Class {
            name: "plain".into(),
            vms,
            persistent: true,
            reservation: 0,
            cap: None,
            weight: 100,
        }],
        compute: Duration::from_micros(20),
        channel,
        quantum: std::env::args().any(|a| a == "yield").then_some(Duration::from_millis(1)),
        workers: usable_cpus().len(),
        cpus: usable_cpus(),
        time: Duration::from_millis(1000 + vms as u64 * 2),
        seed: 1,
        corpus: Arc::new(corpus),
        hz: calibrate(&[]).unwrap().hz,
    };
    let report = run(&open_kvm().unwrap(), &spec, &BackendSpec::Store(store.clone()));
    drop(store);
    std::fs::remove_file(path).unwrap();
    let mut r = report.unwrap();
    let total: u64 = r.ops.iter().sum();
    r.latency_ns.sort_by(f64::total_cmp);
    r.interval_ns.sort_by(f64::total_cmp);
    println!(
        "{vms} VMs made in {:.3} s, {:.0} bytes each; {:.0} pages/s, {:.0} ns CPU a page, loops {}",
        r.creation,
        r.vm_memory,
        total as f64 / r.seconds,
        r.cpu_ns as f64 / total.max(1) as f64,
        r.loops
    );
    let q = |v: &[f64], q: f64| v.get((v.len() as f64 * q) as usize).copied().unwrap_or(0.0);
    println!(
        "latency p50 {:.0} p99 {:.0}; interval p50 {:.0} p99 {:.0}; least {} most {} served; verified {}, bad {:?}",
        q(&r.latency_ns, 0.5),
        q(&r.latency_ns, 0.99),
        q(&r.interval_ns, 0.5),
        q(&r.interval_ns, 0.99),
        r.ops.iter().min().unwrap(),
        r.ops.iter().max().unwrap(),
        r.verified,
        r.classes.iter().map(|c| c.bad).collect::<Vec<_>>()
    );
    println!("stored: {:?}", r.stored);
}
