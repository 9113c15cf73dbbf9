//! From what was declared to a plan: every rule is checked, and everything that breaks one is told at once.

use std::collections::BTreeMap;

use super::{MemoryLimit, ProcessPlan, Scale, ServicePlan};
use crate::config::ProcessSettings;

/// The process of a service that names none.
pub(crate) const DEFAULT_PROCESS: &str = "worker";
/// The longest name: with `app.` before it, it fits the bus.
const NAME_MAX: usize = 96;

/// A process as it was declared.
#[derive(Clone, Debug)]
pub(crate) struct DeclaredProcess {
    pub name: String,
    pub scale: Scale,
    pub env: BTreeMap<String, String>,
    pub args: Vec<String>,
    pub memory_limit: Option<MemoryLimit>,
    pub order: i32,
    /// By the user, and not only there by default.
    pub is_declared: bool,
}

/// A service as it was declared.
#[derive(Clone, Debug)]
pub(crate) struct DeclaredService {
    pub name: String,
    pub placement: Placement,
    pub depends_on: Vec<String>,
    pub is_published: bool,
}

/// Where a service runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    /// In these; in [`DEFAULT_PROCESS`] if there is none.
    In(Vec<String>),
    /// In all that are declared or run another service.
    Everywhere,
}

/// What a declaration becomes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Checked {
    pub processes: Vec<ProcessPlan>,
    pub services: Vec<ServicePlan>,
}

/// Checks the whole and puts it in order.
///
/// # Errors
///
/// Every rule that is broken, a sentence each.
pub(crate) fn check(
    app: &str,
    mut processes: Vec<DeclaredProcess>,
    services: &[DeclaredService],
    settings: &BTreeMap<String, ProcessSettings>,
    auto: u32,
) -> Result<Checked, Vec<String>> {
    let mut errors = Vec::new();
    errors.extend(wrong_name("application", app, ""));
    for process in &processes {
        errors.extend(wrong_name("process", &process.name, ""));
    }
    for service in services {
        errors.extend(wrong_name("service", &service.name, "."));
    }
    if services.is_empty() {
        errors.push("it has no service: declare one with `.service::<S>(name, |s| s)`".to_owned());
    }
    errors.extend(twice("process", processes.iter().map(|process| &*process.name)));
    errors.extend(twice("service", services.iter().map(|service| &*service.name)));
    for process in &mut processes {
        if let Some(settings) = settings.get(&process.name) {
            settings.apply(process);
        }
        if process.scale == Scale::Fixed(0) {
            errors
                .push(format!("process `{}` has scale 0: give it at least 1, or leave it out", process.name));
        }
    }
    errors.extend(unknown_processes(&processes, services));
    let placed = place(&processes, services);
    errors.extend(placed.iter().filter(|service| service.is_published).filter_map(shared_name));
    let sorted = match sort(&placed) {
        Ok(sorted) => sorted,
        Err(wrong) => {
            errors.extend(wrong);
            Vec::new()
        }
    };
    if errors.is_empty() {
        Ok(Checked { processes: started(processes, &sorted, auto), services: sorted })
    } else {
        Err(errors)
    }
}

/// Names are parts of names on the bus, of environment variables and of a file.
fn wrong_name(what: &str, name: &str, further: &str) -> Option<String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c) || further.contains(c);
    let is_right =
        !name.is_empty() && name.len() <= NAME_MAX && name.chars().all(fits) && !name.starts_with('.');
    let dot = if further.is_empty() { "" } else { "`.` (not the first), " };
    (!is_right).then(|| {
        format!("{what} name `{name}`: a name is 1 to {NAME_MAX} letters, digits, {dot}`-` and `_`, all of them ASCII")
    })
}

/// Each name that stands there more than once.
fn twice<'a>(what: &str, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    names.for_each(|name| *counts.entry(name).or_default() += 1);
    let often = counts.into_iter().filter(|(_, count)| *count > 1);
    often.map(|(name, count)| format!("{what} `{name}` is declared {count} times")).collect()
}

fn unknown_processes(processes: &[DeclaredProcess], services: &[DeclaredService]) -> Vec<String> {
    let known: Vec<&str> = processes.iter().map(|process| &*process.name).collect();
    let mut errors = Vec::new();
    for service in services {
        let Placement::In(names) = &service.placement else { continue };
        for name in names.iter().filter(|name| !known.contains(&name.as_str())) {
            errors.push(format!(
                "service `{}` is to run in process `{name}`, which is not declared; there are {}",
                service.name,
                list(&known)
            ));
        }
    }
    errors
}

/// Names in a sentence.
pub(crate) fn list(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    if quoted.is_empty() { "none".to_owned() } else { quoted.join(", ") }
}

/// The services with the processes that each runs in.
fn place(processes: &[DeclaredProcess], services: &[DeclaredService]) -> Vec<ServicePlan> {
    let named: Vec<&str> = services.iter().flat_map(|service| own_processes(&service.placement)).collect();
    let is_used = |process: &&DeclaredProcess| process.is_declared || named.contains(&&*process.name);
    let mut all: Vec<String> = processes.iter().filter(is_used).map(|process| process.name.clone()).collect();
    if all.is_empty() {
        all.push(DEFAULT_PROCESS.to_owned());
    }
    let place = |service: &DeclaredService| ServicePlan {
        name: service.name.clone(),
        processes: match service.placement {
            Placement::Everywhere => all.clone(),
            Placement::In(_) => unique(own_processes(&service.placement).into_iter().map(str::to_owned)),
        },
        depends_on: unique(service.depends_on.iter().cloned()),
        is_published: service.is_published,
    };
    services.iter().map(place).collect()
}

/// The processes that a service has named, the default included.
fn own_processes(placement: &Placement) -> Vec<&str> {
    match placement {
        Placement::Everywhere => Vec::new(),
        Placement::In(names) if names.is_empty() => vec![DEFAULT_PROCESS],
        Placement::In(names) => names.iter().map(String::as_str).collect(),
    }
}

fn unique(names: impl Iterator<Item = String>) -> Vec<String> {
    let mut seen = Vec::new();
    names.for_each(|name| {
        if !seen.contains(&name) {
            seen.push(name);
        }
    });
    seen
}

/// Why a published service cannot have its name, if it would be in processes of several names.
fn shared_name(service: &ServicePlan) -> Option<String> {
    let [first, second, ..] = &service.processes[..] else { return None };
    Some(format!(
        "service `{}` is published and runs in processes `{first}` and `{second}`: those who share a name are all of one process, \
         and told apart by its index; publish it from one",
        service.name
    ))
}

/// The services in an order in which each stands behind all that it depends on, and else as declared; or the dependencies that
/// are not there or go in a circle.
fn sort(services: &[ServicePlan]) -> Result<Vec<ServicePlan>, Vec<String>> {
    let mut walk = Walk { services, chain: Vec::new(), sorted: Vec::new(), errors: Vec::new() };
    (0..services.len()).for_each(|index| walk.visit(index));
    if walk.errors.is_empty() {
        Ok(walk.sorted.into_iter().map(|index| services[index].clone()).collect())
    } else {
        Err(walk.errors)
    }
}

/// A walk along the dependencies, depth first.
struct Walk<'a> {
    services: &'a [ServicePlan],
    /// From where it began to where it is.
    chain: Vec<usize>,
    /// Those that it is done with.
    sorted: Vec<usize>,
    errors: Vec<String>,
}

impl Walk<'_> {
    fn visit(&mut self, index: usize) {
        if self.sorted.contains(&index) {
            return;
        }
        if let Some(start) = self.chain.iter().position(|&earlier| earlier == index) {
            let circle = self.chain[start..].iter().chain([&index]);
            let names: Vec<&str> = circle.map(|&index| &*self.services[index].name).collect();
            self.errors.push(format!("services depend on each other in a circle: {}", names.join(" -> ")));
            return;
        }
        self.chain.push(index);
        for dependency in &self.services[index].depends_on {
            match self.services.iter().position(|service| service.name == *dependency) {
                Some(next) => self.visit(next),
                None => self.unknown(index, dependency),
            }
        }
        self.chain.pop();
        self.sorted.push(index);
    }

    fn unknown(&mut self, index: usize, dependency: &str) {
        let known: Vec<&str> = self.services.iter().map(|service| &*service.name).collect();
        let name = &self.services[index].name;
        let services = list(&known);
        self.errors.push(format!(
            "service `{name}` depends on `{dependency}`, which is not declared; there are {services}"
        ));
    }
}

/// The processes that run at least one service, in their order of start.
fn started(mut processes: Vec<DeclaredProcess>, services: &[ServicePlan], auto: u32) -> Vec<ProcessPlan> {
    processes.retain(|process| services.iter().any(|service| service.processes.contains(&process.name)));
    processes.sort_by_key(|process| process.order);
    let plan = |process: DeclaredProcess| ProcessPlan {
        scale: match process.scale {
            Scale::Auto => auto,
            Scale::Fixed(count) => count,
        },
        name: process.name,
        env: process.env,
        args: process.args,
        memory_limit: process.memory_limit,
    };
    processes.into_iter().map(plan).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(name: &str, scale: impl Into<Scale>) -> DeclaredProcess {
        DeclaredProcess {
            name: name.into(),
            scale: scale.into(),
            env: BTreeMap::new(),
            args: Vec::new(),
            memory_limit: None,
            order: 0,
            is_declared: false,
        }
    }

    fn processes() -> Vec<DeclaredProcess> {
        vec![process("worker", Scale::Auto), process("background", 1)]
    }

    fn service(name: &str, processes: &[&str], depends_on: &[&str]) -> DeclaredService {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        DeclaredService {
            name: name.into(),
            placement: Placement::In(owned(processes)),
            depends_on: owned(depends_on),
            is_published: false,
        }
    }

    fn published(name: &str, processes: &[&str]) -> DeclaredService {
        DeclaredService { is_published: true, ..service(name, processes, &[]) }
    }

    fn everywhere(name: &str) -> DeclaredService {
        DeclaredService { placement: Placement::Everywhere, ..service(name, &[], &[]) }
    }

    fn checked(
        processes: Vec<DeclaredProcess>,
        services: &[DeclaredService],
    ) -> Result<Checked, Vec<String>> {
        check("app", processes, services, &BTreeMap::new(), 4)
    }

    fn names(checked: &Checked) -> (Vec<&str>, Vec<&str>) {
        let processes = checked.processes.iter().map(|process| &*process.name).collect();
        (processes, checked.services.iter().map(|service| &*service.name).collect())
    }

    #[test]
    fn services_stand_behind_their_dependencies_and_else_as_declared() {
        let services = [
            service("web", &[], &["shots", "log"]),
            service("shots", &["background"], &["log"]),
            service("log", &[], &[]),
        ];
        let plan = checked(processes(), &services).unwrap();
        assert_eq!(names(&plan), (vec!["worker", "background"], vec!["log", "shots", "web"]));
        let apart = ["a", "b", "c"].map(|name| service(name, &[], &[]));
        assert_eq!(names(&checked(processes(), &apart).unwrap()).1, ["a", "b", "c"]);
    }

    #[test]
    fn a_process_without_a_service_is_not_started_and_auto_is_counted() {
        let plan = checked(processes(), &[service("web", &[], &[])]).unwrap();
        assert_eq!(names(&plan).0, ["worker"]);
        assert_eq!(plan.processes[0].scale, 4);
    }

    #[test]
    fn processes_start_in_their_order() {
        let mut declared = processes();
        declared[1].order = -1;
        let plan = checked(declared, &[service("a", &["worker", "background"], &[])]).unwrap();
        assert_eq!(names(&plan).0, ["background", "worker"]);
    }

    #[test]
    fn a_service_everywhere_is_in_every_process_that_is_declared_or_used() {
        let declared = DeclaredProcess { is_declared: true, ..process("mail", 1) };
        let mut all = processes();
        all.push(declared);
        let plan = checked(all, &[everywhere("metrics"), service("a", &["background"], &[])]).unwrap();
        assert_eq!(names(&plan).0, ["background", "mail"]);
        let alone = checked(processes(), &[everywhere("metrics")]).unwrap();
        assert_eq!(names(&alone).0, ["worker"]);
    }

    #[test]
    fn a_file_changes_scale_and_memory_before_anything_is_checked() {
        let toml = "scale = 1\nmemory = { limit = \"2 MiB\", children = true }";
        let settings = BTreeMap::from([("worker".to_owned(), toml::from_str(toml).unwrap())]);
        let plan = check("app", processes(), &[published("web", &[])], &settings, 4).unwrap();
        assert_eq!(plan.processes[0].scale, 1);
        let limit = MemoryLimit { bytes: 2 << 20, counts_shared: false, counts_children: true };
        assert_eq!(plan.processes[0].memory_limit, Some(limit));
    }

    #[test]
    fn a_circle_is_named_as_a_chain() {
        type Declared = &'static [(&'static str, &'static [&'static str])];
        let cases: [(Declared, &str); 4] = [
            (&[("a", &["b"]), ("b", &["a"])], "a -> b -> a"),
            (&[("a", &["a"])], "a -> a"),
            (&[("a", &["b"]), ("b", &["c"]), ("c", &["d"]), ("d", &["b"])], "b -> c -> d -> b"),
            (&[("x", &[]), ("a", &["x", "b"]), ("b", &["x", "a"])], "a -> b -> a"),
        ];
        for (declared, chain) in cases {
            let services: Vec<_> =
                declared.iter().map(|(name, depends_on)| service(name, &[], depends_on)).collect();
            let errors = checked(processes(), &services).unwrap_err();
            assert_eq!(errors, [format!("services depend on each other in a circle: {chain}")]);
        }
    }

    #[test]
    fn each_broken_rule_is_told() {
        let zero = || vec![process("worker", 0)];
        let double = || vec![process("worker", 1), process("worker", 1)];
        let ok = || service("a", &[], &[]);
        type Case = (Vec<DeclaredProcess>, Vec<DeclaredService>, &'static [&'static str]);
        let cases: [Case; 10] = [
            (processes(), vec![], &["no service"]),
            (processes(), vec![ok(), ok()], &["service `a` is declared 2 times"]),
            (double(), vec![ok()], &["process `worker` is declared 2 times"]),
            (zero(), vec![ok()], &["process `worker` has scale 0"]),
            (processes(), vec![service("a", &["mail"], &[])], &["process `mail`", "`worker`, `background`"]),
            (processes(), vec![service("a", &[], &["b"])], &["`a` depends on `b`", "there are `a`"]),
            (processes(), vec![published("a", &["worker", "background"])], &["`worker` and `background`"]),
            (processes(), vec![service("a b", &[], &[])], &["service name `a b`"]),
            (processes(), vec![service("", &[], &[])], &["service name ``"]),
            (processes(), vec![service(".a", &[], &[])], &["service name `.a`", "not the first"]),
        ];
        for (processes, services, parts) in cases {
            let errors = checked(processes, &services).unwrap_err();
            assert!(
                errors.iter().any(|error| parts.iter().all(|part| error.contains(part))),
                "{parts:?}: {errors:?}"
            );
        }
        for name in ["", "a.b", "ä", &"a".repeat(NAME_MAX + 1)] {
            let errors = check(name, processes(), &[ok()], &BTreeMap::new(), 1).unwrap_err();
            assert!(errors[0].starts_with("application name"), "{errors:?}");
        }
    }

    #[test]
    fn all_that_is_wrong_is_told_at_once() {
        let services = [
            published("a", &["worker", "background"]),
            service("b", &["mail"], &["nobody"]),
            service("c", &[], &["d"]),
            service("d", &[], &["c"]),
        ];
        let errors = check("", processes(), &services, &BTreeMap::new(), 1).unwrap_err();
        assert_eq!(errors.len(), 5, "{errors:#?}");
    }
}
