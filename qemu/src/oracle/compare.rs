//! Two transcripts side by side, and the list of differences that are meant.
//!
//! A transcript is a list of lines `transcript: WHAT -> ANSWER`; any prefix the console adds is ignored. WHAT must be
//! the same on both sides, in the same order, and no two alike. Answers must be the same, unless the list says that
//! they differ and how. A line of the list that no longer holds is a fault like a difference that is not listed, so the
//! list always says what is so.

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// How a line of a transcript starts.
const MARK: &str = "transcript: ";
/// What is between a question and its answer.
const ARROW: &str = " ->";

/// One thing asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// What was asked.
    pub what: String,
    /// What was answered.
    pub answer: String,
}

/// Reads the transcript out of a console. It may have several parts, each with its own count; today the kernel in the
/// machine prints the only one, and whoever made the machine could print what its own calls answered.
///
/// # Errors
///
/// A part is not complete, by its own count, or the same thing is asked twice.
pub fn transcript(console: &str) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    let mut counted = 0;
    for text in console.lines().filter_map(|line| Some(line.split_once(MARK)?.1.trim())) {
        if let Some((what, answer)) = text.split_once(ARROW) {
            lines.push(Line { what: what.into(), answer: answer.trim().into() });
        } else if let Some(count) = text.strip_suffix(" lines").and_then(|number| number.parse::<usize>().ok()) {
            ensure!(
                lines.len() - counted == count,
                "{} lines of a transcript of {count} arrived",
                lines.len() - counted
            );
            counted = lines.len();
        } else {
            bail!("`{text}` is no line of a transcript");
        }
    }
    ensure!(!lines.is_empty() && lines.len() == counted, "the transcript has no end");
    let mut asked = std::collections::HashSet::new();
    if let Some(twice) = lines.iter().find(|line| !asked.insert(&line.what)) {
        bail!("`{}` is asked twice", twice.what);
    }
    Ok(lines)
}

/// One reason for differences, and where they are. `*` in a pattern stands for any text.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Difference {
    /// Patterns of what is asked; each is asked at least once, and whatever matches differs.
    pub lines: Vec<String>,
    /// Pattern of KVM's answers.
    pub kvm: String,
    /// Pattern of keel's answers.
    pub keel: String,
    /// Hosts where it is so; when absent, all that are not like another.
    pub hosts: Option<Vec<String>>,
    /// Why it is meant to be so.
    pub reason: String,
}

/// The list of differences.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Differences {
    /// Its entries.
    #[serde(default)]
    pub difference: Vec<Difference>,
}

impl Differences {
    /// Reads the list.
    ///
    /// # Errors
    ///
    /// It is no such list, an entry is incomplete, or it names a host that is not among `hosts`.
    pub fn parse(text: &str, hosts: &[&str]) -> Result<Self> {
        let list: Differences = toml::from_str(text)?;
        for entry in &list.difference {
            let what = entry.lines.first().context("an entry without lines")?;
            ensure!(!entry.reason.trim().is_empty(), "`{what}` differs without a reason");
            let unknown = entry.hosts.iter().flatten().find(|host| !hosts.contains(&host.as_str()));
            ensure!(unknown.is_none(), "`{what}`: no host {unknown:?}; there are {hosts:?}");
        }
        Ok(list)
    }
}

/// Whether `text` is what `pattern` says.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    // The first part is where the text begins.
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let mut parts: Vec<_> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// What came of a comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Lines with the same answer.
    pub same: usize,
    /// Lines that differ as listed.
    pub listed: usize,
    /// What is wrong, each ready to be printed.
    pub faults: Vec<String>,
}

/// Compares two transcripts of a host. What is listed for the one that it is `like` may differ here, if nothing is listed for
/// this one itself.
pub fn compare(kvm: &[Line], keel: &[Line], list: &Differences, host: &str, like: Option<&str>) -> Comparison {
    let mut result = Comparison::default();
    let holds = |entry: &Difference, host: &str, otherwise| {
        entry.hosts.as_ref().map_or(otherwise, |all| all.iter().any(|known| known == host))
    };
    let entries: Vec<_> = list.difference.iter().filter(|entry| holds(entry, host, like.is_none())).collect();
    let inherited: Vec<_> =
        like.iter().flat_map(|like| list.difference.iter().filter(move |entry| holds(entry, like, true))).collect();
    let is_inherited = |kvm: &Line, keel: &Line| {
        inherited.iter().any(|entry| {
            entry.lines.iter().any(|pattern| matches(pattern, &kvm.what))
                && matches(&entry.kvm, &kvm.answer)
                && matches(&entry.keel, &keel.answer)
        })
    };
    let mut used: Vec<_> = entries.iter().map(|entry| vec![false; entry.lines.len()]).collect();
    for (number, pair) in kvm.iter().zip(keel).enumerate() {
        let (kvm, keel) = pair;
        if kvm.what != keel.what {
            result.faults.push(format!(
                "line {number} is not about the same thing, so nothing after it was compared\n  KVM   {}\n  keel  {}",
                kvm.what, keel.what
            ));
            return result;
        }
        let mut fault = |why: &str| {
            result.faults.push(format!("{}\n  KVM   {}\n  keel  {}\n  {why}", kvm.what, kvm.answer, keel.answer));
        };
        let mut found = Vec::new();
        for (entry, used) in entries.iter().zip(&mut used) {
            for (pattern, used) in entry.lines.iter().zip(used) {
                if matches(pattern, &kvm.what) {
                    *used = true;
                    found.push((entry, pattern));
                }
            }
        }
        match found[..] {
            [] if kvm.answer == keel.answer => result.same += 1,
            [] if is_inherited(kvm, keel) => result.listed += 1,
            [] => fault("differs, and is not listed"),
            [(entry, _)] if kvm.answer == keel.answer => {
                fault(&format!("is listed as different, but no longer is: {}", entry.reason))
            }
            [(entry, pattern)] => {
                if matches(&entry.kvm, &kvm.answer) && matches(&entry.keel, &keel.answer) {
                    result.listed += 1;
                } else {
                    fault(&format!(
                        "differs, but not as listed: `{pattern}` says KVM `{}`, keel `{}`",
                        entry.kvm, entry.keel
                    ));
                }
            }
            [(_, first), (_, second), ..] => fault(&format!("is listed twice: `{first}` and `{second}`")),
        }
    }
    if kvm.len() != keel.len() {
        result.faults.push(format!("KVM's transcript has {} lines, keel's {}", kvm.len(), keel.len()));
    }
    for (entry, used) in entries.iter().zip(used) {
        for (pattern, _) in entry.lines.iter().zip(used).filter(|(_, used)| !used) {
            result.faults.push(format!("`{pattern}` is listed as different, but nobody asks that: {}", entry.reason));
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    const KVM: &str = "boot\r\ntranscript: call 1 -> 0x1 0x2\r\n[vm] transcript: call 2 -> -1\r\ntranscript: call 3 ->\r\ntranscript: 3 lines\r\n";

    fn list(text: &str) -> Differences {
        Differences::parse(text, &["max", "old"]).unwrap()
    }

    fn entry(lines: &str, kvm: &str, keel: &str) -> String {
        format!("[[difference]]\nlines = [\"{lines}\"]\nkvm = \"{kvm}\"\nkeel = \"{keel}\"\nreason = \"because\"\n")
    }

    fn faults(keel: &str, list: &str) -> Vec<String> {
        let (kvm, keel) = (transcript(KVM).unwrap(), transcript(keel).unwrap());
        compare(&kvm, &keel, &self::list(list), "max", None).faults
    }

    #[test]
    fn transcripts_are_read_and_counted() {
        let lines = transcript(KVM).unwrap();
        assert_eq!(lines[0], Line { what: "call 1".into(), answer: "0x1 0x2".into() });
        assert_eq!(lines[2].answer, "");
        assert_eq!(transcript(&(KVM.to_string() + "transcript: other -> 1\ntranscript: 1 lines\n")).unwrap().len(), 4);
        assert!(transcript("transcript: call 1 -> 0\n").is_err(), "no end");
        assert!(transcript(&(KVM.to_string() + "transcript: other -> 1\n")).is_err(), "no end of the second part");
        assert!(
            transcript("").is_err() && transcript("transcript: a -> 1\ntranscript: a-\ntranscript: 1 lines\n").is_err()
        );
        assert!(transcript("transcript: call 1 -> 0\ntranscript: 2 lines\n").is_err(), "one is missing");
        assert!(transcript("transcript: a -> 0\ntranscript: a -> 0\ntranscript: 2 lines\n").is_err(), "twice");
    }

    #[test]
    fn patterns_match_whole_texts() {
        for (pattern, text, expected) in [
            ("abc", "abc", true),
            ("abc", "abcd", false),
            ("*", "", true),
            ("a*", "abc", true),
            ("a*c", "abc", true),
            ("a*c", "abcd", false),
            ("a*b*c", "a..b..c", true),
            ("*b*b*", "b", false),
            ("a*a", "a", false),
            ("<*>", "<uuid>", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn what_is_the_same_is_no_fault() {
        assert_eq!(faults(KVM, ""), [""; 0]);
    }

    #[test]
    fn a_difference_is_a_fault_unless_listed_as_it_is() {
        let keel = KVM.replace("-> -1", "-> -2");
        let faults_of = |list: &str| faults(&keel, list);
        assert!(faults_of("")[0].contains("not listed"));
        assert!(faults_of("")[0].contains("KVM   -1\n  keel  -2"));
        assert_eq!(faults_of(&entry("call 2", "-1", "-2")), [""; 0]);
        assert_eq!(faults_of(&entry("*2", "*", "*")), [""; 0]);
        assert!(faults_of(&entry("call 2", "-1", "-3"))[0].contains("not as listed"));
        assert!(faults_of(&entry("call *", "*", "*"))[0].contains("no longer"), "call 1 is the same");
        assert!(faults_of(&(entry("call 2", "-1", "-2") + &entry("*2", "*", "*")))[0].contains("twice"));
    }

    #[test]
    fn an_entry_that_no_longer_holds_is_a_fault() {
        assert!(faults(KVM, &entry("call 2", "-1", "-2"))[0].contains("no longer"));
        assert!(faults(KVM, &entry("call 9", "-1", "-2"))[0].contains("nobody asks"));
        let elsewhere = entry("call 9", "-1", "-2") + "hosts = [\"old\"]\n";
        assert_eq!(faults(KVM, &elsewhere), [""; 0]);
    }

    #[test]
    fn a_host_that_is_like_another_may_differ_as_that_one_does() {
        let like = |keel: &str, list: &str| {
            let (kvm, keel) = (transcript(KVM).unwrap(), transcript(keel).unwrap());
            compare(&kvm, &keel, &self::list(list), "old", Some("max")).faults
        };
        let keel = KVM.replace("-> -1", "-> -2");
        for hosts in ["", "hosts = [\"max\"]\n"] {
            let list = entry("call 2", "-1", "-2") + hosts;
            assert_eq!(like(&keel, &list), [""; 0]);
            assert_eq!(like(KVM, &list), [""; 0], "it need not");
            assert!(like(&KVM.replace("-> -1", "-> -3"), &list)[0].contains("not listed"), "in no other way");
        }
        let own = entry("call 2", "-1", "-2") + "hosts = [\"old\"]\n";
        assert!(like(KVM, &own)[0].contains("no longer"));
    }

    #[test]
    fn transcripts_about_different_things_are_not_compared() {
        assert!(faults(&KVM.replace("call 2", "call 7"), "")[0].contains("not about the same thing"));
        let shorter = "transcript: call 1 -> 0x1 0x2\ntranscript: 1 lines\n";
        assert!(faults(shorter, "")[0].contains("3 lines, keel's 1"));
    }

    #[test]
    fn bad_lists_are_refused() {
        let parse = |text: &str| Differences::parse(text, &["max"]);
        assert!(parse("[[difference]]\nlines = []\nkvm = \"\"\nkeel = \"\"\nreason = \"x\"\n").is_err());
        assert!(parse(&entry("a", "b", "c").replace("because", " ")).is_err());
        assert!(parse(&(entry("a", "b", "c") + "hosts = [\"nowhere\"]\n")).is_err());
        assert!(parse(&(entry("a", "b", "c") + "host = \"max\"\n")).is_err());
    }
}
