//! I2C and SPI by the kernel's own interface (linux/i2c-dev.h, linux/spi/spidev.h), for a mapper without rppal.
#![allow(unsafe_code)]

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::AsRawFd,
};

use super::Bus;
use crate::plan::register::{I2cPlace, SpiPlace};

const I2C_M_RD: u16 = 1;

#[repr(C)]
struct I2cMessage {
    address: u16,
    flags: u16,
    len: u16,
    buffer: *mut u8,
}

#[repr(C)]
struct I2cMessages {
    messages: *mut I2cMessage,
    count: u32,
}

#[repr(C)]
#[derive(Default)]
struct SpiTransfer {
    send: u64,
    receive: u64,
    len: u32,
    hz: u32,
    delay_us: u16,
    bits_per_word: u8,
    select_change: u8,
    send_width: u8,
    receive_width: u8,
    word_delay_us: u8,
    padding: u8,
}

// The ioctl's number contains the size.
const _: () = assert!(std::mem::size_of::<SpiTransfer>() == 32);

nix::ioctl_write_ptr_bad!(i2c_rdwr, 0x0707, I2cMessages);
nix::ioctl_write_ptr!(spi_mode, b'k', 1, u8);
nix::ioctl_write_ptr!(spi_message, b'k', 0, SpiTransfer);

struct I2c {
    file: File,
    address: u16,
}

pub fn i2c(place: &I2cPlace) -> io::Result<Box<dyn Bus>> {
    let file = OpenOptions::new().read(true).write(true).open(format!("/dev/i2c-{}", place.bus))?;
    Ok(Box::new(I2c { file, address: place.address }))
}

impl Bus for I2c {
    fn exchange(&mut self, send: &[u8], receive: &mut [u8]) -> io::Result<()> {
        let mut send = send.to_vec();
        let message = |flags: u16, buffer: &mut [u8]| I2cMessage {
            address: self.address,
            flags,
            len: buffer.len() as u16,
            buffer: buffer.as_mut_ptr(),
        };
        let mut messages = [message(0, &mut send), message(I2C_M_RD, receive)];
        let count = if receive.is_empty() { 1 } else { 2 };
        let request = I2cMessages { messages: messages.as_mut_ptr(), count };
        // SAFETY: the descriptor is open; the messages point to `send` and `receive`, which outlive the call and have the
        // lengths given (both are bounded by the limits of a register's description, far below 65536).
        unsafe { i2c_rdwr(self.file.as_raw_fd(), &request) }?;
        Ok(())
    }
}

struct Spi {
    file: File,
    hz: u32,
}

pub fn spi(place: &SpiPlace) -> io::Result<Box<dyn Bus>> {
    let path = format!("/dev/spidev{}.{}", place.bus, place.select);
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    // SAFETY: the descriptor is open, and the kernel reads one byte.
    unsafe { spi_mode(file.as_raw_fd(), &place.mode) }?;
    Ok(Box::new(Spi { file, hz: place.hz }))
}

impl Bus for Spi {
    fn exchange(&mut self, send: &[u8], receive: &mut [u8]) -> io::Result<()> {
        let mut out = send.to_vec();
        out.resize(send.len() + receive.len(), 0);
        let mut back = vec![0u8; out.len()];
        let transfer = SpiTransfer {
            send: out.as_ptr() as u64,
            receive: back.as_mut_ptr() as u64,
            len: out.len() as u32,
            hz: self.hz,
            bits_per_word: 8,
            ..SpiTransfer::default()
        };
        // SAFETY: the descriptor is open; both buffers have the length given and outlive the call.
        unsafe { spi_message(self.file.as_raw_fd(), &transfer) }?;
        receive.copy_from_slice(&back[send.len()..]);
        Ok(())
    }
}
