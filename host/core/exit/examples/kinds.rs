// SPDX-License-Identifier: Apache-2.0
//! Every kind once, with nothing done in it: `cargo run --release -p tmem-exit --example kinds`
#![allow(clippy::unwrap_used)] // An example ends at the first thing that is wrong.

use std::time::Duration;

use tmem_exit::{kinds, rig::Rig, samples::Amount};

fn main() {
    let mut rig = Rig::new(&[0x11; 4096 * 4]).unwrap();
    let amount = Amount { warmup: 50, samples: 1000, time: Duration::from_millis(300) };
    for kind in kinds::ALL {
        match rig.turn(kind, "nothing", 0, amount) {
            Ok(turn) => {
                let mut ns = turn.samples.nanoseconds(rig.hz());
                ns.sort_by(f64::total_cmp);
                println!(
                    "{:<18} {:>10.1} ns  p99 {:>10.1}  cpu {:>9.0}  n {}",
                    kind.name(),
                    ns[ns.len() / 2],
                    ns[ns.len() * 99 / 100],
                    turn.cpu_ns,
                    ns.len()
                );
            }
            Err(e) => println!("{:<18} {e}", kind.name()),
        }
    }
}
