use super::{
    ads1115,
    bme280::{Constants, Sensor},
    *,
};
use crate::plan::chip::{Input, Quantity, Range};

/// The example of the BMP280's data sheet, section 3.12, and humidity constants as they are in the field.
fn constants() -> ([u8; 26], [u8; 7]) {
    let words: [i32; 12] = [27504, 26435, -1000, 36477, -10685, 3024, 2855, 140, -7, 15500, -14600, 6000];
    let mut first = [0; 26];
    for (at, word) in words.iter().enumerate() {
        first[2 * at..2 * at + 2].copy_from_slice(&(*word as u16).to_le_bytes());
    }
    first[25] = 75;
    // H2 = 361, H3 = 0, H4 = 340, H5 = 50, H6 = 30: H4 is 0x154, H5 is 0x032.
    (first, [0x69, 0x01, 0x00, 0x15, 0x24, 0x03, 0x1e])
}

fn data(pressure: u32, temperature: u32, humidity: u16) -> [u8; 8] {
    let [_, p0, p1, p2] = (pressure << 4).to_be_bytes();
    let [_, t0, t1, t2] = (temperature << 4).to_be_bytes();
    let [h0, h1] = humidity.to_be_bytes();
    [p0, p1, p2, t0, t1, t2, h0, h1]
}

/// The data sheet's other way, with whole numbers: percent times 1024.
fn humidity_in_integers(raw: i32, fine: i32) -> f64 {
    let (h1, h2, h3, h4, h5, h6) = (75, 361, 0, 340, 50, 30);
    let mut v = fine - 76800;
    v = ((((raw << 14) - (h4 << 20) - (h5 * v)) + 16384) >> 15)
        * (((((((v * h6) >> 10) * (((v * h3) >> 11) + 32768)) >> 10) + 2_097_152) * h2 + 8192) >> 14);
    v -= ((((v >> 15) * (v >> 15)) >> 7) * h1) >> 4;
    f64::from(v.clamp(0, 419_430_400) >> 12) / 1024.0
}

#[test]
fn the_data_sheets_example_comes_out() {
    let (first, second) = constants();
    let constants = Constants::new(&first, Some(&second));
    for (raw_h, least, most) in
        [(30_000, 20.0, 95.0), (21_000, 0.0, 30.0), (0, 0.0, 0.0), (65_535, 100.0, 100.0)]
    {
        let values = constants.values(&data(415_148, 519_888, raw_h));
        assert!((values.temperature - 25.08).abs() < 0.01, "{values:?}");
        assert!((values.pressure - 1006.5327).abs() < 0.01, "{values:?}");
        let humidity = values.humidity.unwrap();
        let whole = humidity_in_integers(i32::from(raw_h), 128_422);
        assert!((humidity - whole).abs() < 0.1, "{humidity} against {whole}");
        assert!((least..=most).contains(&humidity), "{humidity}");
    }
    assert_eq!(Constants::new(&first, None).values(&data(415_148, 519_888, 0)).humidity, None);
    assert_eq!(Constants::default().values(&[0; 8]).pressure, 0.0, "constants of zero divide nothing");
}

/// Constants, constants of humidity, data, and what Bosch's own implementation in whole numbers makes of them (BME280_SensorAPI 3.5.1
/// with 64 bits, which is the data sheet's; the one in floating point has humidity otherwise than the data sheet): °C, hPa, %.
/// Drawn at random, of the size that chips have.
const REFERENCE: [(&str, &str, &str, [f64; 3]); 6] = [
    (
        "1d6cbb663200ef93e3d6d00b43158efff9ff0d27cad1bd10004b",
        "7f010212cdfe1e",
        "5e1f605ab17074a9",
        [-22.36, 874.5152, 54.999],
    ),
    (
        "3070426618fcc29210d6d00b80153f00f9ffa82d12d6bd10004b",
        "7b0101122d031e",
        "567d10610e40722e",
        [-19.38, 938.5689, 55.529],
    ),
    (
        "356e366918fcf890ead8d00bc71a0700f9ff942951d4bd10004b",
        "7a010115c4fe1e",
        "5d28c0668890927a",
        [-10.09, 887.4360, 83.694],
    ),
    (
        "8f6dbc66320019914ad7d00b25159dfff9ff6627a1c7bd10004b",
        "770101162503e2",
        "5697806b53e06847",
        [-2.86, 967.8672, 24.486],
    ),
    (
        "906d0d693200ca9252d8d00b6b1ef2fff9ffb527f7c4bd10004b",
        "69010016c1fe1e",
        "60443070d8306859",
        [4.31, 844.1786, 21.717],
    ),
    (
        "916f526818fcd6922dd7d00bbc193bfff9ff7827a4d3bd10004b",
        "8201011422031e",
        "55d27075cbe05e1e",
        [8.11, 953.2800, 20.772],
    ),
];

#[test]
fn boschs_implementation_says_the_same() {
    fn bytes<const LEN: usize>(text: &str) -> [u8; LEN] {
        std::array::from_fn(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap())
    }
    for (first, second, data, [temperature, pressure, humidity]) in REFERENCE {
        let values = Constants::new(&bytes(first), Some(&bytes(second))).values(&bytes(data));
        // Whole numbers cut: hundredths of a degree, 1/256 Pa of a temperature that was cut, 1/1024 percent.
        assert!((values.temperature - temperature).abs() < 0.02, "{values:?}");
        assert!((values.pressure - pressure).abs() < 0.005, "{values:?}");
        assert!((values.humidity.unwrap() - humidity).abs() < 0.02, "{values:?}");
    }
}

/// A chip with registers that counts its measurements.
pub(crate) struct FakeBme {
    memory: [u8; 256],
    measurements: usize,
    busy: usize,
}

impl FakeBme {
    pub(crate) fn new(id: u8) -> FakeBme {
        let (first, second) = constants();
        let mut memory = [0; 256];
        memory[0x88..0xa2].copy_from_slice(&first);
        memory[0xe1..0xe8].copy_from_slice(&second);
        memory[0xd0] = id;
        memory[0xf7..0xff].copy_from_slice(&[0x80, 0, 0, 0x80, 0, 0, 0x80, 0]);
        FakeBme { memory, measurements: 0, busy: 0 }
    }
}

impl Bus for FakeBme {
    fn exchange(&mut self, send: &[u8], receive: &mut [u8]) -> std::io::Result<()> {
        let at = usize::from(send[0]);
        match (at, &send[1..]) {
            (0xf4, [control]) => {
                assert_eq!(self.memory[0xf2], 1, "humidity is set before");
                assert_eq!(*control & 3, 1, "forced mode");
                self.measurements += 1;
                self.busy = 3;
                self.memory[0xf3] = 8;
            }
            (at, [byte]) => self.memory[at] = *byte,
            _ => {}
        }
        if at == 0xf3 {
            self.busy = self.busy.saturating_sub(1);
            if self.busy == 0 {
                self.memory[0xf3] = 0;
                self.memory[0xf7..0xff].copy_from_slice(&data(415_148, 519_888, 30_000));
            }
        }
        let len = receive.len();
        receive.copy_from_slice(&self.memory[at..at + len]);
        Ok(())
    }
}

#[test]
fn one_measurement_gives_all_three_and_another_chip_is_named() {
    let (mut bus, mut sensor) = (FakeBme::new(0x60), Sensor::default());
    let mut read = |quantity| sensor.read(&mut bus, quantity).unwrap();
    assert_eq!(read(Quantity::Temperature), "25.08");
    assert_eq!(read(Quantity::Pressure), "1006.53");
    assert!(read(Quantity::Humidity).parse::<f64>().unwrap() > 20.0);
    assert_eq!(bus.measurements, 1);

    let (mut bus, mut sensor) = (FakeBme::new(0x58), Sensor::default());
    assert_eq!(sensor.read(&mut bus, Quantity::Temperature).unwrap(), "25.08");
    let Err(Wrong::Chip(reason)) = sensor.read(&mut bus, Quantity::Humidity) else { panic!() };
    assert!(reason.contains("BMP280, which has no humidity"), "{reason}");
    let Err(Wrong::Chip(reason)) = Sensor::default().read(&mut FakeBme::new(0x61), Quantity::Pressure) else {
        panic!()
    };
    assert!(reason.contains("says that it is 0x61"), "{reason}");
}

#[derive(Default)]
pub(crate) struct FakeAds {
    config: u16,
    pub(crate) volts: [f64; 4],
    looks: usize,
}

impl Bus for FakeAds {
    fn exchange(&mut self, send: &[u8], receive: &mut [u8]) -> std::io::Result<()> {
        match *send {
            [1, high, low] => (self.config, self.looks) = (u16::from_be_bytes([high, low]), 0),
            [1] => {
                self.looks += 1;
                let done = u16::from(self.looks > 2) << 15;
                receive.copy_from_slice(&((self.config & 0x7fff) | done).to_be_bytes());
            }
            [0] => {
                assert!(self.looks > 2, "read before it was done");
                let (mux, gain) = (self.config >> 12 & 7, usize::from(self.config >> 9 & 7));
                let full = [6.144, 4.096, 2.048, 1.024, 0.512, 0.256][gain];
                let raw = self.volts[usize::from(mux - 4)] / full * 32768.0;
                receive.copy_from_slice(&(raw.clamp(-32768.0, 32767.0).round() as i16).to_be_bytes());
            }
            _ => panic!("{send:02x?}"),
        }
        Ok(())
    }
}

#[test]
fn an_ads1115_is_asked_for_one_conversion() {
    let mut bus = FakeAds { volts: [0.0, 1.5, 3.3, 9.9], ..FakeAds::default() };
    let input = |channel| Input { channel, range: Range { code: 1, volts: 4.096 }, scale: 1.0, offset: 0.0 };
    assert_eq!(ads1115::read(&mut bus, input(1)).unwrap(), "1.5");
    assert_eq!(ads1115::read(&mut bus, input(2)).unwrap(), "3.3");
    assert_eq!(ads1115::read(&mut bus, input(3)).unwrap(), "4.09588", "its end");
    let divided = Input { scale: 11.0, offset: -0.5, ..input(1) };
    assert_eq!(ads1115::read(&mut bus, divided).unwrap(), "16");
}
