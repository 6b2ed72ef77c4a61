//! The structures and numbers of include/uapi/linux/gpio.h, version 2 of the interface. The safe side of them is `linux.rs`.
#![allow(unsafe_code)]

pub const FLAG_USED: u64 = 1;
pub const FLAG_ACTIVE_LOW: u64 = 1 << 1;
pub const FLAG_INPUT: u64 = 1 << 2;
pub const FLAG_OUTPUT: u64 = 1 << 3;
pub const FLAG_EDGE_RISING: u64 = 1 << 4;
pub const FLAG_EDGE_FALLING: u64 = 1 << 5;
pub const FLAG_OPEN_DRAIN: u64 = 1 << 6;
pub const FLAG_OPEN_SOURCE: u64 = 1 << 7;
pub const FLAG_BIAS_PULL_UP: u64 = 1 << 8;
pub const FLAG_BIAS_PULL_DOWN: u64 = 1 << 9;
pub const FLAG_BIAS_DISABLED: u64 = 1 << 10;
pub const ATTRIBUTE_OUTPUT_VALUES: u32 = 2;
pub const ATTRIBUTE_DEBOUNCE: u32 = 3;
pub const EVENT_RISING_EDGE: u32 = 1;
/// The kernel's own, which libc does not know: what drivers answer that cannot do something.
pub const ENOTSUPP: i32 = 524;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct ChipInfo {
    pub name: [u8; 32],
    pub label: [u8; 32],
    pub lines: u32,
}

/// `id` says what `value` is; a debounce period is in its first four bytes.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Attribute {
    pub id: u32,
    pub padding: u32,
    pub value: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct ConfigAttribute {
    pub attribute: Attribute,
    pub mask: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct LineConfig {
    pub flags: u64,
    pub attributes_len: u32,
    pub padding: [u32; 5],
    pub attributes: [ConfigAttribute; 10],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct LineRequest {
    pub offsets: [u32; 64],
    pub consumer: [u8; 32],
    pub config: LineConfig,
    pub lines_len: u32,
    pub event_buffer_size: u32,
    pub padding: [u32; 5],
    pub fd: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct LineInfo {
    pub name: [u8; 32],
    pub consumer: [u8; 32],
    pub offset: u32,
    pub attributes_len: u32,
    pub flags: u64,
    pub attributes: [Attribute; 10],
    pub padding: [u32; 4],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct LineValues {
    pub bits: u64,
    pub mask: u64,
}

pub const EVENT_BYTES: usize = 48;

// Sizes and places as a C compiler gives them for linux/gpio.h; the ioctl numbers contain the sizes.
const _: () = {
    use std::mem::{offset_of, size_of};
    assert!(size_of::<ChipInfo>() == 68);
    assert!(size_of::<Attribute>() == 16);
    assert!(size_of::<ConfigAttribute>() == 24);
    assert!(size_of::<LineConfig>() == 272 && offset_of!(LineConfig, attributes) == 0x20);
    assert!(size_of::<LineRequest>() == 592);
    assert!(offset_of!(LineRequest, config) == 0x120 && offset_of!(LineRequest, lines_len) == 0x230);
    assert!(offset_of!(LineRequest, fd) == 0x24c);
    assert!(
        size_of::<LineInfo>() == 256
            && offset_of!(LineInfo, offset) == 0x40
            && offset_of!(LineInfo, flags) == 0x48
    );
    assert!(size_of::<LineValues>() == 16);
    assert!(nix::request_code_read!(0xb4, 0x01, size_of::<ChipInfo>()) as u32 == 0x8044_b401);
    assert!(nix::request_code_readwrite!(0xb4, 0x05, size_of::<LineInfo>()) as u32 == 0xc100_b405);
    assert!(nix::request_code_readwrite!(0xb4, 0x07, size_of::<LineRequest>()) as u32 == 0xc250_b407);
    assert!(nix::request_code_readwrite!(0xb4, 0x0d, size_of::<LineConfig>()) as u32 == 0xc110_b40d);
    assert!(nix::request_code_readwrite!(0xb4, 0x0e, size_of::<LineValues>()) as u32 == 0xc010_b40e);
    assert!(nix::request_code_readwrite!(0xb4, 0x0f, size_of::<LineValues>()) as u32 == 0xc010_b40f);
};

nix::ioctl_read!(get_chip_info, 0xb4, 0x01, ChipInfo);
nix::ioctl_readwrite!(get_line_info, 0xb4, 0x05, LineInfo);
nix::ioctl_readwrite!(get_line, 0xb4, 0x07, LineRequest);
nix::ioctl_readwrite!(set_line_config, 0xb4, 0x0d, LineConfig);
nix::ioctl_readwrite!(get_line_values, 0xb4, 0x0e, LineValues);
nix::ioctl_readwrite!(set_line_values, 0xb4, 0x0f, LineValues);
