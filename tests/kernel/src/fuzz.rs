//! The hostile guest.

use keel_test_kernel::{machine::Machine, println};

pub fn run(_: &'static Machine, _: &str) {
    println!("fuzz: done 0");
}
