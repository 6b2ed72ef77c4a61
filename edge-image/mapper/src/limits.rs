//! Upper bounds of the mapper, and what happens at each.

/// Devices driven at once; a further description is answered with state `unhealthy`.
pub const DEVICES_MAX: usize = 64;
/// Properties of one device; more make the description invalid.
pub const PROPERTIES_MAX: usize = 64;
/// Longest description; a longer message closes the connection to the broker, as any oversized packet.
pub const DESCRIPTION_BYTES_MAX: usize = 128 * 1024;
/// Readings of one device that wait for the broker. When full, older readings of the same property are dropped: the last
/// value of each property is never lost.
pub const READINGS_MAX: usize = 64;
/// Edges taken from one line before other devices have their turn.
pub const EDGES_PER_TURN_MAX: usize = 32;

/// Longest serial text line; a longer one is dropped to its end.
pub const LINE_BYTES_MAX: usize = 256;
/// Longest serial frame before COBS; a longer one is dropped to the next zero byte.
pub const FRAME_BYTES_MAX: usize = 128;
/// Longest text value in a frame.
pub const FRAME_TEXT_BYTES_MAX: usize = 64;
/// Bytes that wait for a serial port; more make the device unhealthy (the port takes nothing).
pub const SERIAL_OUTPUT_BYTES_MAX: usize = 1024;
/// Bytes read from one port before other devices have their turn.
pub const SERIAL_READ_BYTES: usize = 512;

/// Pauses between attempts to open a device.
pub const RETRY_DELAY_MS_MIN: u64 = 1_000;
pub const RETRY_DELAY_MS_MAX: u64 = 30_000;

/// The line-holder: lines, connections, length of a request, and how long the mapper waits for an answer.
pub const HOLDER_LINES_MAX: usize = 64;
pub const HOLDER_CONNECTIONS_MAX: usize = 4;
pub const HOLDER_REQUEST_BYTES_MAX: usize = 512;
pub const HOLDER_ANSWER_MS_MAX: u64 = 1_000;
pub const HOLDER_DEADLINE_MS_MIN: u64 = 500;
pub const HOLDER_DEADLINE_MS_MAX: u64 = 3_600_000;
pub const HOLDER_DEADLINE_MS_DEFAULT: u64 = 30_000;

/// Longest value and name that a twin takes (KubeEdge's rule).
pub const VALUE_BYTES_MAX: usize = 512;
pub const NAME_BYTES_MAX: usize = 128;

/// `reportCycle` and `collectCycle` below this are raised to it.
pub const CYCLE_MS_MIN: u64 = 100;
pub const COLLECT_CYCLE_MS_DEFAULT: u64 = 1_000;
