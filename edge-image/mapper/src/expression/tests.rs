use mqtt::broker::testing::Random;

use super::*;

fn value(source: &str, line: &str) -> Result<String, String> {
    Expression::parse(source)
        .unwrap_or_else(|error| panic!("{source}: {error}"))
        .text(&Given { line, value: None }, false)
}

#[test]
fn values_out_of_lines() {
    let nmea = "$GPRMC,123519,A,4807.038,N,01131.000,E,022.4,084.4,230394,003.1,W*6A";
    for (source, line, expected) in [
        ("line", " 21.5 ", "21.5"),
        ("value * 2", "21.5", "43"),
        ("1 + 2 * 3 - 4 / 2", "", "5"),
        ("-(1 + 2) * -2", "", "6"),
        ("7 % 4 + 0x1F", "", "34"),
        ("1.5e3 - 2e-1", "", "1499.8"),
        ("0.1 * 3", "", "0.3"),
        ("1 / 3", "", "0.333333333333"),
        ("field(line, ';', 1)", "a; b ;c", "b"),
        ("field(line, \", \", -1)", "1, 2, 3", "3"),
        ("word(line, 2)", "S  S   12.5 g", "12.5"),
        ("number(field(line, ',', 1)) * 0.1 - 40", "T,615", "21.5"),
        ("json(line, '/a/1/t')", r#"{"a":[0,{"t":21.5}]}"#, "21.5"),
        ("json(line, '/big')", r#"{"big":18446744073709551615}"#, "18446744073709551615"),
        ("json(line, '/on') ? 'open' : 'shut'", r#"{"on":true}"#, "open"),
        ("json(after(line, 'data: '), '/x') + 1", r#"data: {"x":1}"#, "2"),
        ("nmea(line, 'RMC', 7) * 1.852", nmea, "41.4848"),
        ("nmea(line, 'GPRMC', 2) == 'A'", nmea, "true"),
        ("match(line, 'T=*C H=*%', 1)", "T=21.5C H=40%", "40"),
        ("match(line, 'T=*C*')", "T=21.5C H=40C", "21.5"),
        ("before(after(line, '<'), '>')", "x <7> y", "7"),
        ("starts(line, 'OK') && !contains(line, 'BUT')", "OK 1", "true"),
        ("hex(line) / 2", "0xff", "127.5"),
        ("bit(hex(line), 3) ? 1 : 0", "8", "1"),
        ("round(value, 1)", "21.449", "21.4"),
        ("max(min(value, 100), 0)", "120", "100"),
        // An NTC thermistor's resistance.
        ("round(1 / (ln(value / 10000) / 3950 + 1 / 298.15) - 273.15, 1)", "10000", "25"),
        ("sqrt(pow(3, 2) + pow(4, 2)) + abs(-1) + floor(1.9) + exp(0)", "", "8"),
        ("length(line) > 2 || 1 / line == 1", "abc", "true"),
    ] {
        assert_eq!(value(source, line).as_deref(), Ok(expected), "{source} of {line}");
    }
    assert_eq!(
        Expression::parse("value / 2").unwrap().text(&Given { line: "", value: Some("5") }, true),
        Ok("3".into())
    );
}

#[test]
fn what_has_no_value_says_why() {
    for (source, line, expected) in [
        ("value * 2", "warm", "\"warm\" is no number"),
        ("field(line, ',', 9)", "a,b", "field(text, \",\", 2) finds nothing"),
        ("field(line, ',', -3)", "a,b", "finds nothing"),
        ("json(line, '/a')", "{\"b\":1}", "finds nothing"),
        ("json(line, '/a')", "{\"a\":[1]}", "finds nothing"),
        ("nmea(line, 'GGA', 1)", "$GPGGA,1*00", "finds nothing"),
        ("match(line, 'T=*C', 0)", "H=40", "finds nothing"),
        ("1 / 0", "", "1 / 0 gives no number"),
        ("line ? 1 : 2", "maybe", "\"maybe\" is neither true nor false"),
    ] {
        let error = value(source, line).unwrap_err();
        assert!(error.contains(expected), "{source}: {error}");
    }
}

#[test]
fn what_is_no_expression_says_where() {
    let deep = format!("{}1{}", "(".repeat(40), ")".repeat(40));
    let chain = ["1"; 60].join("+");
    let many = format!("max(1,{})", ["1+1*1+1*1+1*1"; 12].join(",max(1,")) + &")".repeat(11);
    for (source, expected) in [
        ("", "character 1: a value is needed where the end is"),
        ("1 +", "character 4: a value is needed where the end is"),
        ("1 2", "character 3: an operator or the end is needed where \"2\" is"),
        ("(1", "character 3: ) is needed where the end is"),
        ("1 ? 2", "character 6: : is needed"),
        ("'open", "a text with its end is needed"),
        ("field(line)", "field is written field(text, \",\", 2)"),
        ("1..2", "a number is needed"),
        ("1e999", "a smaller number is needed"),
        ("0xfffffffff", "1 to 8 hexadecimal digits"),
        ("system(1)", "system is unknown"),
        ("ä", "a value is needed where \"ä\" is"),
        (&deep, "nested deeper than 32"),
        (&chain, "more than 32 operators in a row"),
        (&many, "more than 128 parts"),
        (&"1".repeat(600), "longer than 512 bytes"),
    ] {
        let error = Expression::parse(source).expect_err(source);
        assert!(error.contains(expected), "{source}: {error}");
    }
}

#[test]
fn patterns() {
    let part = |pattern: &'static str, text: &'static str, at| Pattern::new(pattern).part(text, at);
    assert_eq!(part("a*b*c", "a1bb2c", 0), Some("1"));
    assert_eq!(part("a*b*c", "a1bb2c", 1), Some("b2"));
    assert_eq!(part("*", "all", 0), Some("all"));
    assert_eq!(part("*x", "xxx", 0), Some("xx"));
    assert_eq!(part("a*a", "a", 0), None);
    assert_eq!(part("a*", "b", 0), None);
    assert_eq!(part("a*", "ab", 1), None);
    assert_eq!(part("**", "é", 1), Some("é"));
    assert_eq!(part("abc", "abc", 0), None);
}

#[test]
fn numbers_as_people_write_them() {
    for (number, text) in [
        (0.1 + 0.2, "0.3"),
        (-0.0, "0"),
        (1e14, "100000000000000"),
        (1e20, "1e20"),
        (1.25e-9, "1.25e-9"),
        (-21.5, "-21.5"),
        (2.0_f64 / 3.0, "0.666666666667"),
    ] {
        assert_eq!(number_text(number), text);
    }
}

#[test]
fn any_text() {
    let pieces = [
        "line",
        "value",
        "(",
        ")",
        "+",
        "-",
        "*",
        "/",
        "%",
        "?",
        ":",
        "&&",
        "||",
        "!",
        "==",
        "<",
        "1",
        "0.1",
        "'a'",
        "\"",
        ",",
        "field(line,',',1)",
        "json(line,'/a/0')",
        "match(value,'*.*',1)",
        "nmea(line,'GGA',-1)",
        "1e308",
        "é",
        "\n",
        "T=1;2*3",
        "round(value,99)",
        "bit(1e300,9)",
        "pow(9,999)",
        "hex('zz')",
    ];
    let mut random = Random(3);
    for round in 0..20_000 {
        let mut text = String::new();
        for _ in 0..random.below(14) {
            text += pieces[random.below(pieces.len())];
        }
        let mut data = text.into_bytes();
        if round % 4 == 0 && !data.is_empty() {
            let at = random.below(data.len());
            data[at] = random.next() as u8;
        }
        fuzz_expression(&data);
    }
}
