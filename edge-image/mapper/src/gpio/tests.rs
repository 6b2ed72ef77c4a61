//! The suite that the kernel's chip passes in the guest (tests/lines), here on the fake.

#[path = "../../../../tests/lines/src/conformance.rs"]
mod conformance;

use super::fake::{LABEL, World};

impl conformance::Wires for World {
    fn label(&self) -> String {
        LABEL.into()
    }

    fn pull(&mut self, line: u32, high: bool) {
        self.flip(line, high);
    }

    fn is_high(&mut self, line: u32) -> bool {
        self.high(line)
    }

    fn unplug(&mut self) {
        *self.unplugged.borrow_mut() = true;
    }
}

#[test]
fn the_fake_conforms() {
    for debounces in [true, false] {
        let world = World::default();
        *world.debounces.borrow_mut() = debounces;
        for (name, row) in conformance::ROWS {
            // Debouncing takes a clock, which the fake has not.
            if debounces && name.contains("debounced") {
                continue;
            }
            if let Err(error) = row(&mut world.clone(), &mut world.clone()) {
                panic!("{name}: {error}");
            }
        }
    }
}
