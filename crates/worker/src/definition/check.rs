//! What a schema can't say: names that repeat, steps that wait for each other.

use std::collections::{BTreeMap, BTreeSet};

use super::{Definition, Ingest, Limits, Maintenance, MartName, Mode, Place, Schedule, Step, Transform, table_name};

/// Why a definition is none.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct Fault(String);

impl Fault {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

type Checked = Result<(), Fault>;

fn want(good: bool, fault: impl FnOnce() -> String) -> Checked {
    if good { Ok(()) } else { Err(Fault(fault())) }
}

impl Definition {
    pub(super) fn check(&self) -> Checked {
        match self {
            Self::Transform(transform) => transform.check(),
            Self::Maintenance(maintenance) => maintenance.check(),
        }
    }
}

/// Also the beginning of a snapshot's name, which is a letter and 63 more at most, with a date and a time behind it.
fn named(what: &str, name: &str) -> Checked {
    let plain = name.len() <= 48
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    want(plain, || format!("{what}: `{name}` wants a small letter and up to 47 more, digits and dashes"))
}

impl Transform {
    /// What a file is checked for, and a workflow's input once more.
    pub fn check(&self) -> Checked {
        named("name", &self.name)?;
        if let Some(mart) = &self.mart {
            mart.check()?;
        }
        self.limits.check()?;
        want(!self.steps.is_empty(), || "steps: there are none".into())?;
        let mut names = BTreeSet::new();
        let all = self.steps.iter().map(|step| &step.name);
        let all = all.chain(self.checks.iter().map(|check| &check.name));
        for name in all.chain(self.persist.iter().map(|persist| &persist.name)) {
            let plain = name.len() <= 60
                && name.starts_with(|c: char| c.is_ascii_alphanumeric())
                && name.chars().all(|c| c.is_ascii_alphanumeric() || " _.-".contains(c));
            want(plain, || format!("`{name}`: a name wants 1 to 60 letters, digits, spaces, `_`, `.` and `-`"))?;
            want(names.insert(name), || format!("`{name}`: the name comes twice"))?;
        }
        for step in &self.steps {
            step.check()?;
        }
        in_order(&self.steps)?;
        for check in &self.checks {
            want(!check.sql.trim().is_empty(), || format!("check `{}`: its SQL is empty", check.name))?;
            let scalar = check.expect.as_ref().is_none_or(|value| !value.is_array() && !value.is_object());
            want(scalar, || format!("check `{}`: `expect` wants one value", check.name))?;
        }
        for persist in &self.persist {
            let of = format!("persist `{}`", persist.name);
            want(!persist.sql.trim().is_empty(), || format!("{of}: its SQL is empty"))?;
            keyed(&of, persist.mode, &persist.key)?;
        }
        if let Some(publish) = &self.publish {
            publish.snapshot.as_ref().map_or(Ok(()), |name| named("publish: snapshot", name))?;
            want(self.place == Place::Branch || publish.tables.is_empty(), || {
                "publish: `tables` are carried over from a branch; with `place: snapshot` they are in the mart already"
                    .into()
            })?;
            for (index, table) in publish.tables.iter().enumerate() {
                want(table_name(table).is_some(), || format!("publish: `{table}` is not `table` or `schema.table`"))?;
                let twice = publish.tables[..index].iter().any(|other| table_name(other) == table_name(table));
                want(!twice, || format!("publish: `{table}` comes twice"))?;
            }
        }
        self.schedule.as_ref().map_or(Ok(()), Schedule::check)
    }
}

impl Step {
    fn check(&self) -> Checked {
        let of = format!("step `{}`", self.name);
        match (&self.sql, &self.ingest) {
            (Some(sql), None) => want(!sql.trim().is_empty(), || format!("{of}: its SQL is empty")),
            (None, Some(ingest)) => ingest.check(&of),
            _ => Err(Fault(format!("{of}: wants either `sql` or `ingest`"))),
        }
    }
}

impl Ingest {
    fn check(&self, of: &str) -> Checked {
        want(self.from.is_some() != self.sql.is_some(), || format!("{of}: `ingest` wants either `from` or `sql`"))?;
        want(table_name(&self.table).is_some(), || format!("{of}: `{}` is not `table` or `schema.table`", self.table))?;
        keyed(of, self.mode, &self.key)
    }
}

fn keyed(of: &str, mode: Mode, key: &[String]) -> Checked {
    want(key.is_empty() != (mode == Mode::Upsert), || {
        format!("{of}: `mode: upsert` wants `key`, and nothing else does")
    })
}

impl MartName {
    fn check(&self) -> Checked {
        let plain = |part: &str| {
            (1..=50).contains(&part.len())
                && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        };
        let good = self.0.split_once('/').is_some_and(|(tenant, mart)| plain(tenant) && plain(mart));
        want(good, || format!("`{self}` is not `tenant/mart`"))
    }
}

impl Limits {
    fn check(&self) -> Checked {
        want((1..=604_800).contains(&self.timeout_seconds), || "limits: `timeout_seconds` wants 1 to 604800".into())?;
        want((1..=2_592_000).contains(&self.retry_seconds), || "limits: `retry_seconds` wants 1 to 2592000".into())
    }
}

impl Maintenance {
    /// What a file is checked for, and a workflow's input once more.
    pub fn check(&self) -> Checked {
        named("name", &self.name)?;
        want(!self.marts.is_empty(), || "marts: there are none".into())?;
        want(!self.tasks.is_empty(), || "tasks: there are none".into())?;
        self.marts.iter().try_for_each(MartName::check)?;
        self.limits.check()?;
        for (task, options) in &self.tasks {
            options.schedule.check()?;
            let archives = options.storage_class.is_some() || options.older_than_days.is_some();
            want(!archives || *task == super::Task::Archive, || {
                format!("tasks: `{}` knows no `storage_class` and no `older_than_days`", task.word())
            })?;
        }
        Ok(())
    }
}

impl Schedule {
    /// Only its form; Temporal refuses a day that never comes.
    fn check(&self) -> Checked {
        let words = self.cron.split_whitespace().count();
        want(words == 5, || {
            format!("schedule: `{}` wants five words: minute, hour, day, month, day of week", self.cron)
        })?;
        want(self.catchup_seconds >= 10, || "schedule: `catchup_seconds` wants 10 at least".into())
    }
}

/// Whether each step can come after those that it needs; names a circle if there is one.
fn in_order(steps: &[Step]) -> Checked {
    let needs: BTreeMap<&str, &[String]> =
        steps.iter().map(|step| (step.name.as_str(), step.needs.as_slice())).collect();
    for step in steps {
        for needed in &step.needs {
            want(needs.contains_key(needed.as_str()), || {
                format!("step `{}` needs `{needed}`, which is no step", step.name)
            })?;
        }
    }
    let mut left: BTreeSet<&str> = needs.keys().copied().collect();
    while let Some(next) =
        left.iter().copied().find(|name| needs[name].iter().all(|needed| !left.contains(needed.as_str())))
    {
        left.remove(next);
    }
    let Some(first) = left.first().copied() else { return Ok(()) };
    // Each that is left needs another that is left: going on must come back.
    let mut way = vec![first];
    loop {
        let here = way[way.len() - 1];
        let next = needs[here].iter().map(String::as_str).find(|needed| left.contains(needed)).unwrap_or(here);
        if let Some(from) = way.iter().position(|name| *name == next) {
            way.push(next);
            return Err(Fault(format!("steps wait for each other: {}", way[from..].join(" → "))));
        }
        way.push(next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "
kind: transform
name: daily
steps:
  - name: a
    sql: SELECT 1
  - name: b
    needs: [a]
    ingest: {from: 's3://x/*.parquet', table: t, mode: upsert, key: [id]}
";

    fn fault(text: &str) -> String {
        Definition::parse(text).expect_err("a fault").to_string()
    }

    #[test]
    fn what_is_left_out_has_its_usual_value() {
        let Ok(Definition::Transform(read)) = Definition::parse(GOOD) else { panic!("a transform") };
        assert_eq!((read.place, read.limits.profile.as_str()), (Place::Branch, "batch"));
        let text = "kind: maintenance\nname: m\nmarts: [default/dev]\n";
        let Ok(Definition::Maintenance(read)) = Definition::parse(text) else { panic!("a maintenance") };
        assert_eq!(read.tasks.len(), 5);
    }

    #[test]
    fn faults_say_where_they_are() {
        let with = |from: &str, to: &str| fault(&GOOD.replace(from, to));
        assert_eq!(with("needs: [a]", "needs: [c]"), "step `b` needs `c`, which is no step");
        assert_eq!(
            with("    sql: SELECT 1", "    needs: [b]\n    sql: SELECT 1"),
            "steps wait for each other: a → b → a"
        );
        assert_eq!(with("needs: [a]", "needs: [b]"), "steps wait for each other: b → b");
        assert!(with("name: b", "name: a").contains("comes twice"));
        assert!(with("    sql: SELECT 1", "    sql: ''").contains("empty"));
        assert!(with("    sql: SELECT 1", "").contains("either `sql` or `ingest`"));
        assert!(with("    sql: SELECT 1", "    sqk: SELECT 1").contains("unknown field `sqk`"));
        assert!(with("table: t,", "table: 't;',").contains("is not `table`"));
        assert!(with("mode: upsert", "mode: append").contains("wants `key`, and nothing else does"));
        assert!(with("name: daily", "name: Daily").contains("small letter"));
        assert!(with("kind: transform", "kind: other").contains("unknown variant `other`"));
        assert!(fault("a: [").contains("line"));
    }
}
