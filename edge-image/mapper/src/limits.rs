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
/// Edges of one line that are reported one by one: a burst, and so many a second after it. Further ones become one report of
/// the last level, are counted, and are told as the device's reason for so long after the last one.
pub const EDGE_BURST_MAX: u64 = 32;
pub const EDGES_PER_SECOND_MAX: u64 = 50;
pub const EDGE_TROUBLE_MS: u64 = 60_000;
/// A line with more edges than that is looked at this often instead of at each edge.
pub const STORM_PAUSE_MS: u64 = 100;

/// Bytes of one register, and bytes sent before they come or skipped in the answer.
pub const REGISTER_BYTES_MAX: usize = 8;
pub const REGISTER_SEND_BYTES_MAX: usize = 16;
/// Longest text of a 1-Wire sensor's file that is read.
pub const ONEWIRE_FILE_BYTES_MAX: u64 = 512;
/// Threads for devices on slow buses, also those that hang in the kernel; one more device is offline with that reason.
pub const WORKERS_MAX: usize = 16;
pub const WORKER_STACK_BYTES: usize = 64 * 1024;
/// After this a bus counts as hanging: its values are stale until it answers.
pub const ANSWER_MS_MAX: u64 = 10_000;
/// So many failures in a row, and the last value stands no more.
pub const PASSING_FAILURES_MAX: u32 = 5;

/// Longest serial text line; a longer one is dropped to its end.
pub const LINE_BYTES_MAX: usize = 1024;
/// Longest line to send.
pub const WRITE_BYTES_MAX: usize = 512;
/// Bytes that wait for a serial port; more make the device unhealthy (the port takes nothing).
pub const SERIAL_OUTPUT_BYTES_MAX: usize = 1024;
/// Bytes that wait for one of the devices on a port; the oldest are dropped.
pub const SERIAL_INBOX_BYTES_MAX: usize = 2048;
/// Bytes read from one port before other devices have their turn.
pub const SERIAL_READ_BYTES: usize = 512;

/// Expressions: a longer, larger or deeper one makes the description invalid.
pub const EXPRESSION_BYTES_MAX: usize = 512;
pub const EXPRESSION_NODES_MAX: usize = 128;
pub const EXPRESSION_DEPTH_MAX: usize = 32;

/// Requests of one device that wait for its line: all its properties read one by one, and all written and read back. A further one
/// is made when there is room.
pub const MODBUS_JOBS_MAX: usize = 3 * PROPERTIES_MAX;
/// Largest `timeoutMs`, `retries` and `busyRetries`: together they bound how long one request keeps a line.
pub const MODBUS_TIMEOUT_MS_MAX: u64 = 30_000;
pub const MODBUS_RETRIES_MAX: u8 = 10;
/// Longest wait for a TCP connection.
pub const MODBUS_CONNECT_MS_MAX: u64 = 5_000;
/// Pauses between looks for a slave that does not answer.
pub const MODBUS_PROBE_MS_MIN: u64 = 1_000;
pub const MODBUS_PROBE_MS_MAX: u64 = 30_000;
/// Pause after a slave refused to tell one property, so that a wrong offset does not take the line's time.
pub const MODBUS_REFUSED_MS: u64 = 10_000;

/// Pauses between attempts to open a device.
pub const RETRY_DELAY_MS_MIN: u64 = 1_000;
pub const RETRY_DELAY_MS_MAX: u64 = 30_000;
/// Pause before devices are opened because a device file came: several come together, and a storm of them must cost little.
pub const HOT_PLUG_DELAY_MS: u64 = 200;

/// The line-holder: lines, connections, length of a request, and how long the mapper waits for an answer.
pub const HOLDER_LINES_MAX: usize = 64;
pub const HOLDER_CONNECTIONS_MAX: usize = 4;
pub const HOLDER_REQUEST_BYTES_MAX: usize = 512;
/// Longest line of an answer: an error may list the lines of a chip.
pub const HOLDER_ANSWER_BYTES_MAX: usize = 2048;
pub const HOLDER_ANSWER_MS_MAX: u64 = 1_000;
pub const HOLDER_DEADLINE_MS_MIN: u64 = 500;
pub const HOLDER_DEADLINE_MS_MAX: u64 = 3_600_000;
pub const HOLDER_DEADLINE_MS_DEFAULT: u64 = 30_000;
/// Longest `linkLostMs` and `desiredMaxAgeMs`: a week.
pub const FAILSAFE_WAIT_MS_MAX: u64 = 7 * 24 * 3_600_000;
/// Longest pulse, and longest half of a blink; longer ones are refused.
pub const PULSE_MS_MAX: u64 = 3_600_000;
/// Shortest half of a blink: relays do not follow faster ones.
pub const BLINK_MS_MIN: u64 = 20;
/// Switching lines by software wakes the line-holder for each edge; faster wishes are refused.
pub const SOFT_PWM_HZ_MIN: f64 = 0.1;
pub const SOFT_PWM_HZ_MAX: f64 = 200.0;
pub const SOFT_PWM_HZ_DEFAULT: f64 = 50.0;
/// Lines that are switched by software at once; one more is refused.
pub const SOFT_PWM_LINES_MAX: usize = 8;
/// Edges that the kernel keeps for one counted line and for one reported one; when they are full the oldest are dropped, and
/// the gap in their numbers is told.
pub const COUNT_BUFFER_EDGES: u32 = 1024;
pub const INPUT_BUFFER_EDGES: u32 = 64;
/// Counted lines are read at most this often: a storm of edges wakes the line-holder no more than this.
pub const COUNT_PAUSE_US: u64 = 5_000;
/// Counts are written to disk at most this often (and at a stop): a power cut loses no more than that.
pub const COUNTS_SAVE_MS: u64 = 600_000;
/// Longest file of counts that is read; a longer one is none of ours.
pub const COUNTS_FILE_BYTES_MAX: u64 = 32 * 1024;

/// Longest value and name that a twin takes (KubeEdge's rule).
pub const VALUE_BYTES_MAX: usize = 512;
pub const NAME_BYTES_MAX: usize = 128;

/// `reportCycle` and `collectCycle` below this are raised to it.
pub const CYCLE_MS_MIN: u64 = 100;
pub const COLLECT_CYCLE_MS_DEFAULT: u64 = 1_000;

/// How long `scan modbus` waits for each address: at 2400 baud an answer takes 40 ms, and slow devices think as long.
pub const MODBUS_SCAN_TIMEOUT_MS: u64 = 200;
/// 1-Wire sensors and I2C buses that `scan` shows; further ones are left out.
pub const SCAN_ENTRIES_MAX: usize = 64;

/// DMI: what edgecore said and the engine has not taken yet; then the connection waits.
pub const DMI_COMMANDS_MAX: usize = 64;
/// Connections of edgecore: KubeEdge makes a new one for each call.
pub const DMI_CONNECTIONS_MAX: usize = 8;
/// Models that are kept; a further one is refused.
pub const DMI_MODELS_MAX: usize = 64;
pub const DMI_CALL_S_MAX: u64 = 10;
/// After a refusal: KubeEdge takes one call a second from all mappers together, after the first hundred.
pub const DMI_REFUSED_PAUSE_MS: u64 = 1_000;
