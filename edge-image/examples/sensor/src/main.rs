//! The shell around [`sensor::Sensor`] on an LM3S6965 (QEMU's `lm3s6965evb`): a UART and a clock, nothing else.
//!
//! For another chip, change the four functions at the end and the addresses in link.ld.
#![no_std]
#![no_main]

use core::ptr::{read_volatile, write_volatile};

use sensor::Sensor;

/// The vectors that a Cortex-M starts from: the stack's end, and the reset handler; faults end in the same place.
#[repr(C)]
struct Vectors {
    stack: usize,
    handlers: [unsafe extern "C" fn() -> !; 15],
}

#[unsafe(link_section = ".vectors")]
#[used]
static VECTORS: Vectors = {
    let mut handlers: [unsafe extern "C" fn() -> !; 15] = [halt; 15];
    handlers[0] = reset;
    Vectors { stack: 0x2001_0000, handlers }
};

#[unsafe(no_mangle)]
unsafe extern "C" fn reset() -> ! {
    start_clock();
    let mut sensor = Sensor::default();
    let mut now_ms = 0;
    loop {
        while let Some(byte) = uart_read() {
            for byte in sensor.receive(byte) {
                uart_write(byte);
            }
        }
        if clock_ticked() {
            now_ms += 1;
            for byte in sensor.tick(now_ms) {
                uart_write(byte);
            }
        }
    }
}

unsafe extern "C" fn halt() -> ! {
    loop {}
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// UART 0, a PL011: data and flags.
const UART_DATA: *mut u32 = 0x4000_c000 as *mut u32;
const UART_FLAGS: *const u32 = 0x4000_c018 as *const u32;
/// SysTick: control (bit 16: it reached zero), reload, current.
const TICK_CONTROL: *mut u32 = 0xe000_e010 as *mut u32;
const TICK_RELOAD: *mut u32 = 0xe000_e014 as *mut u32;
/// Of the processor at reset, roughly: nothing here depends on it.
const CLOCK_HZ: u32 = 12_000_000;

fn uart_read() -> Option<u8> {
    // SAFETY: the addresses are this chip's UART; reading has no other effect than taking the byte.
    unsafe { (read_volatile(UART_FLAGS) & 1 << 4 == 0).then(|| read_volatile(UART_DATA) as u8) }
}

fn uart_write(byte: u8) {
    // SAFETY: as above; waits while the transmitter is full.
    unsafe {
        while read_volatile(UART_FLAGS) & 1 << 5 != 0 {}
        write_volatile(UART_DATA, u32::from(byte));
    }
}

fn start_clock() {
    // SAFETY: SysTick is this core's own timer, used by nobody else; no interrupt is enabled.
    unsafe {
        write_volatile(TICK_RELOAD, CLOCK_HZ / 1000 - 1);
        write_volatile(TICK_CONTROL, 0b101);
    }
}

fn clock_ticked() -> bool {
    // SAFETY: reading clears the mark.
    unsafe { read_volatile(TICK_CONTROL) & 1 << 16 != 0 }
}
