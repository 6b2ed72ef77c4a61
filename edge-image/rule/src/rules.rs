//! Rules as a plain value: twin messages in, twin messages out.
//!
//! A rule is `<ns>/<device> <property> <test> => <ns>/<device> <property> <value>`; the test is `=V`, `!=V`, `>V` or `<V`, the value a text
//! or `toggle`. It acts when the test becomes true. At the start it acts on what is true already, so that a lamp is right after a
//! power cut, but nothing is toggled then: nobody pressed a button.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

/// A device is `<namespace>/<name>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub device: String,
    pub property: String,
}

#[derive(Clone, Debug, PartialEq)]
enum Test {
    Is(String),
    IsNot(String),
    Above(f64),
    Below(f64),
}

#[derive(Clone, Debug, PartialEq)]
struct Rule {
    source: Place,
    test: Test,
    target: Place,
    /// `None`: the opposite of what is.
    value: Option<String>,
}

#[derive(Debug, PartialEq)]
pub struct Message {
    pub topic: String,
    pub payload: String,
}

#[derive(Debug)]
pub struct Rules {
    rules: Vec<Rule>,
    /// What the twins say.
    values: BTreeMap<Place, String>,
}

impl Test {
    fn holds(&self, value: &str) -> bool {
        let number = value.parse::<f64>();
        match self {
            Test::Is(wanted) => value == wanted,
            Test::IsNot(unwanted) => value != unwanted,
            Test::Above(bound) => number.is_ok_and(|number| number > *bound),
            Test::Below(bound) => number.is_ok_and(|number| number < *bound),
        }
    }
}

impl Rules {
    /// One rule per text. The error names the rule and shows how one is written.
    pub fn new(texts: &[String]) -> Result<Rules, String> {
        let parse = |text: &String| {
            rule(text).ok_or_else(|| {
                format!("{text:?} is no rule; write it as \"default/button-1 pressed =true => default/led-1 lit toggle\"")
            })
        };
        let rules = texts.iter().map(parse).collect::<Result<Vec<Rule>, String>>()?;
        if rules.is_empty() {
            return Err("there is no rule: give one or more as arguments".into());
        }
        Ok(Rules { rules, values: BTreeMap::new() })
    }

    pub fn filters(&self) -> Vec<String> {
        let topics = |device: &String| {
            ["twin/get/result", "twin/update/document"]
                .map(|what| format!("$hw/events/device/{device}/{what}"))
        };
        self.devices().iter().flat_map(topics).collect()
    }

    /// Asked when the broker is there (again): what are the twins now?
    pub fn questions(&self) -> Vec<Message> {
        let question = |device: &String| Message {
            topic: format!("$hw/events/device/{device}/twin/get"),
            payload: "{\"event_id\":\"rule\"}".into(),
        };
        self.devices().iter().map(question).collect()
    }

    /// Every device's twins are known.
    pub fn is_informed(&self) -> bool {
        self.rules.iter().all(|rule| self.values.contains_key(&rule.source))
    }

    fn devices(&self) -> BTreeSet<String> {
        self.rules
            .iter()
            .flat_map(|rule| [&rule.source, &rule.target])
            .map(|place| place.device.clone())
            .collect()
    }

    /// A message of the broker, and what follows from it.
    pub fn handle(&mut self, topic: &str, payload: &[u8]) -> Vec<Message> {
        let Some(rest) = topic.strip_prefix("$hw/events/device/") else { return Vec::new() };
        let Some((at, _)) = rest.match_indices('/').nth(1) else { return Vec::new() };
        let (device, what) = (&rest[..at], &rest[at + 1..]);
        let pointer = match what {
            "twin/get/result" => "/actual/value",
            "twin/update/document" => "/current/actual/value",
            _ => return Vec::new(),
        };
        let message: Value = serde_json::from_slice(payload).unwrap_or_default();
        // All values first: what a toggle is the opposite of may come in the same message.
        let mut changes = Vec::new();
        for (property, twin) in message["twin"].as_object().into_iter().flatten() {
            let Some(value) = twin.pointer(pointer).and_then(Value::as_str) else { continue };
            let place = Place { device: device.into(), property: property.clone() };
            let before = self.values.insert(place.clone(), value.to_owned());
            changes.push((place, before, value));
        }
        let mut messages = Vec::new();
        for (place, before, value) in changes {
            for rule in self.rules.iter().filter(|rule| rule.source == place) {
                let held = before.as_deref().map(|before| rule.test.holds(before));
                if rule.test.holds(value) && held != Some(true) {
                    messages.extend(self.act(rule, held.is_none()));
                }
            }
        }
        messages
    }

    fn act(&self, rule: &Rule, at_start: bool) -> Option<Message> {
        let is = self.values.get(&rule.target).map(String::as_str);
        let value = match &rule.value {
            Some(value) => value.as_str(),
            None if at_start => return None,
            None => match is? {
                "true" => "false",
                "false" => "true",
                "1" => "0",
                "0" => "1",
                _ => return None,
            },
        };
        if is == Some(value) {
            return None;
        }
        let property = &rule.target.property;
        let payload = json!({"event_id": "rule", "twin": {property: {"expected": {"value": value}}}});
        let topic = format!("$hw/events/device/{}/twin/update", rule.target.device);
        Some(Message { topic, payload: payload.to_string() })
    }
}

fn rule(text: &str) -> Option<Rule> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let [source, property, test, "=>", target, switched, value] = words[..] else { return None };
    let place = |device: &str, property: &str| {
        let (namespace, name) = device.split_once('/')?;
        let whole = !namespace.is_empty() && !name.is_empty() && !name.contains('/');
        (whole && !device.contains(['+', '#']))
            .then(|| Place { device: device.into(), property: property.into() })
    };
    let test = if let Some(value) = test.strip_prefix("!=") {
        Test::IsNot(value.into())
    } else if let Some(value) = test.strip_prefix('=') {
        Test::Is(value.into())
    } else if let Some(bound) = test.strip_prefix('>') {
        Test::Above(bound.parse().ok()?)
    } else {
        Test::Below(test.strip_prefix('<')?.parse().ok()?)
    };
    Some(Rule {
        source: place(source, property)?,
        test,
        target: place(target, switched)?,
        value: Some(value.to_owned()).filter(|value| value != "toggle"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(texts: &[&str]) -> Rules {
        Rules::new(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    /// What a twin message of a device leads to, as `device property=value`.
    fn told(rules: &mut Rules, device: &str, what: &str, twin: Value) -> Vec<String> {
        let topic = format!("$hw/events/device/{device}/{what}");
        let payload = json!({ "twin": twin }).to_string();
        let wish = |message: Message| {
            let twin = &serde_json::from_str::<Value>(&message.payload).unwrap()["twin"];
            let (property, wish) = twin.as_object().unwrap().iter().next().unwrap();
            let device = message.topic.strip_prefix("$hw/events/device/").unwrap();
            let device = device.strip_suffix("/twin/update").unwrap();
            format!("{device} {property}={}", wish["expected"]["value"].as_str().unwrap())
        };
        rules.handle(&topic, payload.as_bytes()).into_iter().map(wish).collect()
    }

    fn changed(rules: &mut Rules, device: &str, property: &str, value: &str) -> Vec<String> {
        told(
            rules,
            device,
            "twin/update/document",
            json!({property: {"current": {"actual": {"value": value}}}}),
        )
    }

    #[test]
    fn a_button_toggles_a_lamp_once_per_press() {
        let mut rules = rules(&["default/b pressed =true => default/l lit toggle"]);
        assert_eq!(rules.filters().len(), 4);
        assert_eq!(rules.questions().len(), 2);
        assert!(!rules.is_informed());
        let known = |value: &str| json!({"pressed": {"actual": {"value": value}}});
        assert_eq!(
            told(&mut rules, "default/b", "twin/get/result", known("true")),
            [] as [&str; 0],
            "nobody pressed now"
        );
        assert_eq!(
            told(&mut rules, "default/l", "twin/get/result", json!({"lit": {"actual": {"value": "false"}}})),
            [] as [&str; 0]
        );
        assert!(rules.is_informed());
        assert_eq!(changed(&mut rules, "default/b", "pressed", "false"), [] as [&str; 0]);
        assert_eq!(changed(&mut rules, "default/b", "pressed", "true"), ["default/l lit=true"]);
        assert_eq!(
            changed(&mut rules, "default/b", "pressed", "true"),
            [] as [&str; 0],
            "still the same press"
        );
        changed(&mut rules, "default/l", "lit", "true");
        changed(&mut rules, "default/b", "pressed", "false");
        assert_eq!(changed(&mut rules, "default/b", "pressed", "true"), ["default/l lit=false"]);
    }

    #[test]
    fn bounds_act_when_they_are_passed_and_at_the_start() {
        let mut rules =
            rules(&["a/t temp >25 => a/f on 1", "a/t temp <23.5 => a/f on 0", "a/t state !=ok => a/f on 1"]);
        assert_eq!(changed(&mut rules, "a/t", "temp", "26"), ["a/f on=1"]);
        changed(&mut rules, "a/f", "on", "1");
        assert_eq!(changed(&mut rules, "a/t", "temp", "27"), [] as [&str; 0]);
        assert_eq!(changed(&mut rules, "a/t", "temp", "24"), [] as [&str; 0], "between the bounds it stays");
        assert_eq!(changed(&mut rules, "a/t", "temp", "23"), ["a/f on=0"]);
        changed(&mut rules, "a/f", "on", "0");
        assert_eq!(changed(&mut rules, "a/t", "state", "broken"), ["a/f on=1"]);
        changed(&mut rules, "a/f", "on", "1");
        assert_eq!(changed(&mut rules, "a/t", "state", "broken"), [] as [&str; 0]);
        assert_eq!(changed(&mut rules, "a/t", "temp", "nan"), [] as [&str; 0]);
    }

    #[test]
    fn what_is_no_rule_or_no_twin_message_is_told_or_left() {
        for text in [
            "",
            "a b",
            "b pressed =true => a/l lit toggle",
            "a/b p true => a/l lit 1",
            "a/b p >x => a/l lit 1",
            "a/+ p =1 => a/l lit 1",
            "a/b/c p =1 => a/l lit 1",
            "a/b p =1 -> a/l lit 1",
        ] {
            assert!(
                Rules::new(&[text.to_owned()]).unwrap_err().contains("default/button-1 pressed"),
                "{text}"
            );
        }
        assert!(Rules::new(&[]).unwrap_err().contains("no rule"));
        let mut rules = rules(&["a/b p =1 => a/l lit 1"]);
        for (topic, payload) in [
            ("$hw/events/device/a/b/twin/update/document", "{"),
            ("$hw/events/device/a/b/twin/update/document", "{\"twin\":[1]}"),
            ("$hw/events/device/a/b/twin/update/document", "{\"twin\":{\"p\":null}}"),
            ("$hw/events/device/a", "{}"),
            ("elsewhere", "{}"),
        ] {
            assert_eq!(rules.handle(topic, payload.as_bytes()), [], "{topic} {payload}");
        }
    }
}
