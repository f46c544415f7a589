//! The JSON result: valid, complete, and true to the record.
//!
//! Owns these tests and a strict little parser to read it back; leaves escaping to json's own.
//! Invariant: the parser shares no code with the writer.

use super::result::{SCHEMA, result_json};
use crate::proto::message::Stage;
use crate::proto::record::Record;
use crate::proto::report::Migration;
use crate::verdict::fixture::{STALL, add_log, passing, passing_with_scheduler};
use crate::verdict::judge;
use crate::verdict::table::defaults;
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq)]
enum Value {
    Null,
    Bool(bool),
    Number(String),
    Text(String),
    List(Vec<Value>),
    Map(BTreeMap<String, Value>),
}

impl Value {
    fn at(&self, path: &str) -> &Value {
        path.split('.').fold(self, |value, key| match value {
            Value::Map(map) => map.get(key).unwrap_or_else(|| panic!("no '{key}' of '{path}'")),
            Value::List(list) => &list[key.parse::<usize>().unwrap()],
            other => panic!("'{key}' of {other:?}"),
        })
    }
    fn text(&self, path: &str) -> &str {
        match self.at(path) {
            Value::Text(text) => text,
            other => panic!("{path} is {other:?}"),
        }
    }
    fn number(&self, path: &str) -> &str {
        match self.at(path) {
            Value::Number(text) => text,
            other => panic!("{path} is {other:?}"),
        }
    }
    fn list(&self, path: &str) -> &[Value] {
        match self.at(path) {
            Value::List(list) => list,
            other => panic!("{path} is {other:?}"),
        }
    }
}

/// A strict parser of RFC 8259 that panics on anything else.
struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn parse(text: &str) -> Value {
        let mut parser = Parser { rest: text };
        let value = parser.value();
        parser.space();
        assert_eq!(parser.rest, "");
        value
    }
    fn space(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\n', '\t', '\r']);
    }
    fn take(&mut self, token: &str) -> bool {
        self.space();
        let rest = self.rest.strip_prefix(token);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }
    fn value(&mut self) -> Value {
        if self.take("null") {
            return Value::Null;
        }
        if self.take("true") {
            return Value::Bool(true);
        }
        if self.take("false") {
            return Value::Bool(false);
        }
        if self.take("\"") {
            return Value::Text(self.string());
        }
        if self.take("[") {
            return Value::List(self.items("]", |parser| parser.value()));
        }
        if self.take("{") {
            let members = self.items("}", |parser| {
                assert!(parser.take("\""));
                let key = parser.string();
                assert!(parser.take(":"));
                (key, parser.value())
            });
            let count = members.len();
            let map: BTreeMap<String, Value> = members.into_iter().collect();
            assert_eq!(map.len(), count, "a key twice");
            return Value::Map(map);
        }
        let end = self.rest.find(|c: char| !"+-.0123456789eE".contains(c)).unwrap_or(self.rest.len());
        let (number, rest) = self.rest.split_at(end);
        assert!(number.parse::<f64>().is_ok_and(f64::is_finite), "'{number}' before '{rest}'");
        assert!(!number.starts_with(['+', '.']) && !number.ends_with('.'));
        self.rest = rest;
        Value::Number(number.to_owned())
    }
    fn items<T>(&mut self, close: &str, mut item: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let mut items = Vec::new();
        if self.take(close) {
            return items;
        }
        loop {
            items.push(item(self));
            if self.take(close) {
                return items;
            }
            assert!(self.take(","), "a comma before '{}'", self.rest);
        }
    }
    fn string(&mut self) -> String {
        let mut text = String::new();
        loop {
            let c = self.rest.chars().next().expect("the string ends");
            self.rest = &self.rest[c.len_utf8()..];
            assert!(c >= ' ', "a raw control character");
            match c {
                '"' => return text,
                '\\' => {
                    let kind = self.rest.chars().next().unwrap();
                    self.rest = &self.rest[1..];
                    text.push(match kind {
                        'n' => '\n',
                        'r' => '\r',
                        't' => '\t',
                        '"' | '\\' => kind,
                        'u' => {
                            let code = u32::from_str_radix(&self.rest[..4], 16).unwrap();
                            self.rest = &self.rest[4..];
                            char::from_u32(code).unwrap()
                        }
                        other => panic!("escape \\{other}"),
                    });
                }
                c => text.push(c),
            }
        }
    }
}

fn result(record: &Record) -> Value {
    Parser::parse(&result_json(record, &judge(record, &defaults())))
}

#[test]
fn passing_run_has_every_part() {
    let json = result(&passing_with_scheduler());
    assert_eq!(json.text("schema"), SCHEMA);
    assert_eq!((json.text("outcome"), json.number("exit_code"), json.text("seed")), ("pass", "0", "42"));
    assert_eq!(json.text("reached"), "bye");
    assert_eq!(*json.at("stopped_at"), Value::Null);
    assert_eq!(*json.at("emulated"), Value::Bool(false));
    assert_eq!(json.text("scheduler.ops"), "mini_fifo");
    assert_eq!(json.text("guest.kernel_release"), "7.2.13-cloud-amd64");
    assert_eq!(json.number("host.memory_bytes"), "268435456");
    assert_eq!(json.list("groups").len(), 2);
    assert_eq!(json.number("groups.0.work_units"), "10000000");
    assert_eq!(json.number("groups.0.cpu_percent"), "100");
    assert_eq!(json.number("groups.0.latency.wake.count"), "200");
    assert_eq!(json.list("workers").len(), 4);
    assert_eq!(json.number("workers.3.latency.wake.max_ns"), "1000000");
    assert_eq!(json.number("memory.vm_own_kib"), "4096");
    assert_eq!(*json.at("kernel_log.complete"), Value::Bool(true));
}

#[test]
fn checks_carry_units_in_their_names() {
    let json = result(&passing());
    let check = |name: &str| {
        let known = |check: &&Value| check.text("name") == name;
        json.list("checks").iter().find(known).unwrap().clone()
    };
    assert_eq!(check("max_gap").number("value_ns"), "17000000");
    assert_eq!(check("max_gap").number("threshold_ns"), "2000000000");
    assert_eq!(check("spread").number("threshold_percent"), "15");
    assert_eq!(check("not_starved").number("value_count"), "0");
    assert_eq!(check("scheduler_alive").text("status"), "not-applied");
}

#[test]
fn timings_are_differences_in_order() {
    let json = result(&passing());
    let list = json.list("timings");
    assert_eq!(list.len(), 12);
    assert_eq!((list[0].text("stage"), list[0].at("since_ns")), (Stage::Exec.name(), &Value::Null));
    assert!(list[1..].iter().all(|interval| interval.number("since_ns") == "100000000"));
}

#[test]
fn stall_names_its_victim() {
    let mut record = passing_with_scheduler();
    add_log(&mut record, &STALL);
    let json = result(&record);
    assert_eq!((json.text("outcome"), json.number("exit_code")), ("fail", "1"));
    let exits = json.list("scheduler.exits");
    let exit = exits.last().unwrap();
    assert_eq!((exit.text("reason"), exit.number("exit_kind")), ("runnable task stall", "1026"));
    assert_eq!((exit.text("victim.comm"), exit.number("victim.pid")), ("kw0.0-spin", "184"));
    let bad = json.list("kernel_log.findings").iter().filter(|finding| finding.text("severity") == "fail").count();
    assert_eq!(bad, 1);
}

#[test]
fn unmeasured_numbers_are_null_and_hostile_text_stays_text() {
    let mut record = passing();
    record.reports[0].1.max_run_delay_ns = None;
    record.reports[0].0 = "\"},{\"\\\u{0}\u{7f}\n".into();
    record.notes.push("\u{2028}</script>".into());
    let json = result(&record);
    assert_eq!(*json.at("workers.0.max_run_delay_ns"), Value::Null);
    assert_eq!(json.text("workers.0.group"), "\"},{\"\\\u{0}\u{7f}\n");
    assert_eq!(json.text("notes.0"), "\u{2028}</script>");
}

#[test]
fn migrations_are_told_one_by_one_beside_their_count() {
    let mut record = passing();
    let report = &mut record.reports[0].1;
    report.migrations = vec![
        Migration { at_ns: 5, from_cpu: 0, to_cpu: 3 },
        // What comes from a guest is told as it came.
        Migration { at_ns: u64::MAX, from_cpu: 3, to_cpu: u32::MAX },
    ];
    report.migration_count = 70;
    record.reports[1].1.migrations.clear();
    let json = result(&record);
    assert_eq!(json.number("workers.0.migrations"), "70");
    let seen = json.list("workers.0.migration_list").iter();
    let seen: Vec<[&str; 3]> = seen.map(|one| ["at_ns", "from_cpu", "to_cpu"].map(|key| one.number(key))).collect();
    assert_eq!(seen, [["5", "0", "3"], ["18446744073709551615", "3", "4294967295"]]);
    assert!(json.list("workers.1.migration_list").is_empty());
}

#[test]
fn empty_record_is_valid_json() {
    let json = result(&Record::default());
    assert_eq!((json.text("outcome"), json.number("exit_code")), ("error", "128"));
    assert_eq!(*json.at("host"), Value::Null);
}
