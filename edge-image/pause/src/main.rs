//! PID 1 of a pod sandbox: holds the pod's namespaces open, reaps orphans, exits on SIGTERM or SIGINT.
//!
//! Not here: libc, an allocator, arguments, output. Build it inside this folder, so that `.cargo/config.toml` here applies:
//! `cargo build --release --target aarch64-unknown-linux-musl`.
//!
//! Invariant: the signals are blocked before the first wait, so one that arrives at any time is either pending or taken. The
//! kernel never drops a blocked signal, not even for PID 1 of a namespace, which it does for one with the default action.

#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

// The kernel enters with an aligned stack and no return address; a Rust function expects a call.
#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "xor %ebp, %ebp", "and $-16, %rsp", "call {main}", main = sym main, options(att_syntax));
#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "mov x29, xzr", "mov x30, xzr", "bl {main}", main = sym main);

const SIG_BLOCK: usize = 0;
const SIGINT: u64 = 2;
const SIGTERM: u64 = 15;
const SIGCHLD: u64 = 17;
/// The kernel's sigset_t: bit n-1 is signal n.
const WAITED: u64 = 1 << (SIGINT - 1) | 1 << (SIGTERM - 1) | 1 << (SIGCHLD - 1);
const SIGSET_BYTES: usize = 8;
const WNOHANG: usize = 1;
const ANY_CHILD: usize = usize::MAX;

#[cfg(target_arch = "x86_64")]
mod number {
    pub const RT_SIGPROCMASK: usize = 14;
    pub const RT_SIGTIMEDWAIT: usize = 128;
    pub const WAIT4: usize = 61;
    pub const EXIT_GROUP: usize = 231;
}
#[cfg(target_arch = "aarch64")]
mod number {
    pub const RT_SIGPROCMASK: usize = 135;
    pub const RT_SIGTIMEDWAIT: usize = 137;
    pub const WAIT4: usize = 260;
    pub const EXIT_GROUP: usize = 94;
}

extern "C" fn main() -> ! {
    let set = &raw const WAITED_SET as usize;
    // SAFETY: the set is a static of SIGSET_BYTES; a null old set is allowed.
    unsafe { syscall(number::RT_SIGPROCMASK, SIG_BLOCK, set, 0, SIGSET_BYTES) };
    loop {
        // SAFETY: as above; null info and null timeout are allowed (wait for ever).
        match unsafe { syscall(number::RT_SIGTIMEDWAIT, set, 0, 0, SIGSET_BYTES) } as u64 {
            SIGTERM | SIGINT => exit(0),
            SIGCHLD => reap(),
            // Interrupted (a debugger, a stop and continue): wait again.
            _ => {}
        }
    }
}

static WAITED_SET: u64 = WAITED;

/// One SIGCHLD may stand for many children.
fn reap() {
    // SAFETY: null status and null usage are allowed.
    while unsafe { syscall(number::WAIT4, ANY_CHILD, 0, WNOHANG, 0) } > 0 {}
}

fn exit(code: usize) -> ! {
    loop {
        // SAFETY: takes no pointer and does not return.
        unsafe { syscall(number::EXIT_GROUP, code, 0, 0, 0) };
    }
}

/// # Safety
/// Arguments that the call takes as pointers must be valid for it or null where it allows that.
#[cfg(target_arch = "x86_64")]
unsafe fn syscall(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result: isize;
    // SAFETY: the kernel's calling convention: rcx and r11 are clobbered, nothing else; the caller vouches for the pointers.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
             lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// # Safety
/// Arguments that the call takes as pointers must be valid for it or null where it allows that.
#[cfg(target_arch = "aarch64")]
unsafe fn syscall(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result: isize;
    // SAFETY: the kernel's calling convention: x0 is the result, nothing else changes; the caller vouches for the pointers.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a as isize => result, in("x1") b, in("x2") c, in("x3") d, options(nostack));
    }
    result
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    exit(101)
}
