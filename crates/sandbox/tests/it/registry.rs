//! Drivers by name.

use std::collections::HashMap;

use karta_sandbox::limits::Machines;
use karta_sandbox::registry::{Config, DRIVERS, build};

use crate::support::{clock, rng};

fn config() -> Config {
    let root = std::env::temp_dir().join("karta-never-made");
    let machines = Machines::new(root.join("machines"));
    Config { root, machines, programs: HashMap::new(), functions: HashMap::new(), clock: clock(), rng: rng() }
}

#[test]
fn every_name_makes_its_driver() {
    for name in DRIVERS {
        assert_eq!(build(name, config()).unwrap().id(), *name);
    }
}

#[test]
fn other_names_are_refused_with_the_reason() {
    let refused = |name| build(name, config()).err().unwrap().to_string();
    let unknown = refused("docker");
    assert!(
        unknown.contains("`docker`") && unknown.contains("`process`, `namespace`, `microvm`, `fake`"),
        "{unknown}"
    );
}
