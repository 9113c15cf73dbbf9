//! The builder: what an application consists of, as its `main` says it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use objbus::{Bus, Object, OpenError, Publication};

use crate::config::Settings;
use crate::control::ROLE_VARIABLE;
use crate::options::{self, Asked, Options};
use crate::plan::check::{Checked, DEFAULT_PROCESS, DeclaredProcess, DeclaredService, Placement, check};
use crate::plan::{MemoryLimit, Plan, PlanErrors, Restart, Scale};
use crate::service::{AnyService, Declared, Publisher, Service, publisher};

/// How long a service may take to start, unless said otherwise.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a process may take to stop, unless said otherwise.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// The exit code for a wrong argument or declaration.
const EXIT_WRONG: u8 = 2;

/// Opens the bus.
pub(crate) type BusFactory = Arc<dyn Fn() -> Result<Bus, OpenError> + Send + Sync>;

/// An application: its processes, its services, and how they are kept running. The [front page](crate) has an example.
///
/// The processes `worker` (scale [`Auto`](Scale::Auto)) and `background` (scale 1) are there without being declared; a service that
/// names no process runs in `worker`, and a process without a service is not started.
#[must_use = "an application does nothing until `run`"]
pub struct App {
    name: String,
    processes: Vec<DeclaredProcess>,
    services: Vec<(DeclaredService, Arc<dyn AnyService>)>,
    restart: Restart,
    start_timeout: Duration,
    stop_timeout: Duration,
    bus: BusFactory,
}

impl App {
    /// An application. Its name, of letters, digits, `-` and `_`, is that of its configuration file (`<name>.toml`), what its
    /// environment variables begin with, and what it is called on the bus (`app.<name>`).
    pub fn new(name: &str) -> App {
        let process = |name: &str, scale| DeclaredProcess {
            name: name.to_owned(),
            scale,
            env: BTreeMap::new(),
            args: Vec::new(),
            memory_limit: None,
            order: 0,
            is_declared: false,
        };
        App {
            name: name.to_owned(),
            processes: vec![process(DEFAULT_PROCESS, Scale::Auto), process("background", Scale::Fixed(1))],
            services: Vec::new(),
            restart: Restart::default(),
            start_timeout: START_TIMEOUT,
            stop_timeout: STOP_TIMEOUT,
            bus: Arc::new(Bus::open),
        }
    }

    /// Declares a process, or says more about `worker` or `background`. Unless said otherwise its scale is 1.
    pub fn process(mut self, name: &str, build: impl FnOnce(ProcessBuilder) -> ProcessBuilder) -> App {
        let there = self.processes.iter().position(|process| process.name == name && !process.is_declared);
        let process = DeclaredProcess {
            is_declared: true,
            ..there.map_or_else(
                || DeclaredProcess {
                    name: name.to_owned(),
                    scale: Scale::Fixed(1),
                    env: BTreeMap::new(),
                    args: Vec::new(),
                    memory_limit: None,
                    order: 0,
                    is_declared: true,
                },
                |index| self.processes[index].clone(),
            )
        };
        let ProcessBuilder(process) = build(ProcessBuilder(process));
        match there {
            Some(index) => self.processes[index] = process,
            None => self.processes.push(process),
        }
        self
    }

    /// Declares a service of the type `S`.
    pub fn service<S: Service>(
        mut self,
        name: &str,
        build: impl FnOnce(ServiceBuilder<S>) -> ServiceBuilder<S>,
    ) -> App {
        let blank = ServiceBuilder {
            placement: Placement::In(Vec::new()),
            depends_on: Vec::new(),
            config: S::Config::default(),
            publisher: None,
        };
        let ServiceBuilder { placement, depends_on, config, publisher } = build(blank);
        let is_published = publisher.is_some();
        let declared = DeclaredService { name: name.to_owned(), placement, depends_on, is_published };
        self.services.push((declared, Arc::new(Declared::<S> { config: Arc::new(config), publisher })));
        self
    }

    /// How often a process that ends by itself is started again.
    pub fn restart(mut self, restart: Restart) -> App {
        self.restart = restart;
        self
    }

    /// How long a service may take to be made and to start; 30 s by default.
    pub fn start_timeout(mut self, timeout: Duration) -> App {
        self.start_timeout = timeout;
        self
    }

    /// How long a process may take to stop, all of its services together, before it is killed; 5 s by default.
    pub fn stop_timeout(mut self, timeout: Duration) -> App {
        self.stop_timeout = timeout;
        self
    }

    /// Another bus than [`Bus::open`] gives.
    pub fn bus(mut self, open: impl Fn() -> Result<Bus, OpenError> + Send + Sync + 'static) -> App {
        self.bus = Arc::new(open);
        self
    }

    /// Runs the application, with the options that its arguments say (see `--help`), until it is told to end by SIGTERM or
    /// Ctrl-C, or cannot go on. The exit code is 0 after a stop that was asked for, 2 after a wrong argument, declaration or
    /// configuration, and 1 otherwise.
    ///
    /// Every process of the application runs the same `main`, up to this: what stands before it happens in each of them.
    pub fn run(self) -> ExitCode {
        let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
        if std::env::var_os(ROLE_VARIABLE).is_some() {
            return self.run_with(options::parse_known(arguments));
        }
        match options::parse(arguments) {
            Ok(Asked::Run(options)) => self.run_with(options),
            Ok(Asked::Help) => {
                print!("{}", options::help(&self.name));
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("{}: {error}", self.name);
                ExitCode::from(EXIT_WRONG)
            }
        }
    }

    /// As [`run`](App::run), for a program that has a command line of its own.
    pub fn run_with(self, options: Options) -> ExitCode {
        crate::run::run(self, options)
    }

    /// The application's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What opens the bus.
    pub(crate) fn bus_factory(&self) -> BusFactory {
        Arc::clone(&self.bus)
    }

    /// The service of that name.
    pub(crate) fn find_service(&self, name: &str) -> Option<Arc<dyn AnyService>> {
        let found = self.services.iter().find(|(declared, _)| declared.name == name);
        found.map(|(_, service)| Arc::clone(service))
    }

    /// The plan, if all that was declared and configured is right.
    ///
    /// # Errors
    ///
    /// [`PlanErrors`], with everything that is wrong.
    pub(crate) fn plan(&self, options: &Options) -> Result<Plan, PlanErrors> {
        self.configured(options).map(|(plan, _)| plan)
    }

    /// As [`plan`](Self::plan), with the configuration that it was made with.
    pub(crate) fn configured(&self, options: &Options) -> Result<(Plan, Settings), PlanErrors> {
        let mut reasons = Vec::new();
        let settings = Settings::load(&self.name, options).unwrap_or_else(|error| {
            reasons.push(error);
            Settings::default()
        });
        let services: Vec<DeclaredService> =
            self.services.iter().map(|(declared, _)| declared.clone()).collect();
        let names: Vec<&str> = services.iter().map(|service| &*service.name).collect();
        let processes: Vec<&str> = self.processes.iter().map(|process| &*process.name).collect();
        reasons.extend(settings.unknown(&names, &processes));
        for (declared, service) in &self.services {
            reasons.extend(service.check(&declared.name, &settings));
        }
        let auto =
            if options.dev { 1 } else { available_parallelism().map_or(1, |count| count.get() as u32) };
        let checked = check(&self.name, self.processes.clone(), &services, settings.processes(), auto);
        match checked {
            Ok(Checked { processes, services }) if reasons.is_empty() => {
                let plan = Plan {
                    name: self.name.clone(),
                    processes,
                    services,
                    restart: self.restart,
                    start_timeout: self.start_timeout,
                    stop_timeout: self.stop_timeout,
                };
                Ok((plan, settings))
            }
            checked => {
                reasons.splice(0..0, checked.err().unwrap_or_default());
                Err(PlanErrors { app: self.name.clone(), reasons })
            }
        }
    }
}

/// A process that is being declared: see [`App::process`].
#[derive(Debug)]
#[must_use = "the closure gives it back"]
pub struct ProcessBuilder(DeclaredProcess);

impl ProcessBuilder {
    /// How many of it run at a time: a number, or [`Scale::Auto`].
    pub fn scale(mut self, scale: impl Into<Scale>) -> ProcessBuilder {
        self.0.scale = scale.into();
        self
    }

    /// A variable in its environment.
    pub fn env(mut self, key: &str, value: &str) -> ProcessBuilder {
        self.0.env.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Arguments of its own, behind those that the application was started with: its services find them in
    /// [`std::env::args`]. They mean nothing to [`App::run`].
    pub fn args<A: Into<String>>(mut self, args: impl IntoIterator<Item = A>) -> ProcessBuilder {
        self.0.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// How much memory each instance of it may have; beyond it, it is stopped and started again. Bytes, of which only
    /// what it has for itself counts, or a [`MemoryLimit`].
    pub fn memory_limit(mut self, limit: impl Into<MemoryLimit>) -> ProcessBuilder {
        self.0.memory_limit = Some(limit.into());
        self
    }

    /// Its place in the order of start: lower ones first, equal ones as declared; 0 by default.
    pub fn order(mut self, order: i32) -> ProcessBuilder {
        self.0.order = order;
        self
    }
}

/// A service that is being declared: see [`App::service`].
#[must_use = "the closure gives it back"]
pub struct ServiceBuilder<S: Service> {
    placement: Placement,
    depends_on: Vec<String>,
    config: S::Config,
    publisher: Option<Publisher<S>>,
}

impl<S: Service> ServiceBuilder<S> {
    /// Runs it in this process, and in no other unless that is named too.
    pub fn process(mut self, name: &str) -> ServiceBuilder<S> {
        match &mut self.placement {
            Placement::In(names) => names.push(name.to_owned()),
            Placement::Everywhere => self.placement = Placement::In(vec![name.to_owned()]),
        }
        self
    }

    /// Runs it in every process that is declared or has another service.
    pub fn every_process(mut self) -> ServiceBuilder<S> {
        self.placement = Placement::Everywhere;
        self
    }

    /// Its configuration, where file and environment say nothing else; by default its type's default.
    pub fn config(mut self, config: S::Config) -> ServiceBuilder<S> {
        self.config = config;
        self
    }

    /// Is started after this service has started in all its processes, and stopped before it.
    pub fn depends_on(mut self, service: &str) -> ServiceBuilder<S> {
        self.depends_on.push(service.to_owned());
        self
    }

    /// Publishes it on the bus under its name while it is started. Where its process has a scale of more than 1, each of them
    /// publishes an [instance](objbus::Bus::publish_as) of it, whose tag is the process' index.
    pub fn publish(self) -> ServiceBuilder<S>
    where
        S: Object,
    {
        self.publish_with(|publication| publication)
    }

    /// As [`publish`](ServiceBuilder::publish), with rules: who may call, how many calls run at once.
    ///
    /// ```
    /// # use objbus_app::{Service, ServiceBuilder, ServiceContext, ServiceError};
    /// # struct Counter;
    /// # #[objbus::object] impl Counter { pub fn count(&self) -> u32 { 1 } }
    /// # impl Service for Counter {
    /// #     type Config = ();
    /// #     async fn new(_: ServiceContext<()>) -> Result<Self, ServiceError> { Ok(Counter) }
    /// # }
    /// # fn declare(s: ServiceBuilder<Counter>) -> ServiceBuilder<Counter> {
    /// s.publish_with(|publication| publication.workers(1).access(objbus::Access::only().uid(0)))
    /// # }
    /// ```
    pub fn publish_with(
        mut self,
        rules: impl Fn(Publication) -> Publication + Send + Sync + 'static,
    ) -> ServiceBuilder<S>
    where
        S: Object,
    {
        self.publisher = Some(publisher(rules));
        self
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::context::ServiceContext;
    use crate::plan::mib;
    use crate::service::ServiceError;

    #[derive(Serialize, Deserialize)]
    struct Port {
        port: u16,
    }

    impl Default for Port {
        fn default() -> Port {
            Port { port: 80 }
        }
    }

    struct Web;

    #[objbus::object]
    impl Web {
        pub fn nop(&self) {}
    }

    impl Service for Web {
        type Config = Port;

        async fn new(_: ServiceContext<Port>) -> Result<Web, ServiceError> {
            Ok(Web)
        }
    }

    fn planned(app: &App) -> Result<Plan, PlanErrors> {
        app.plan(&Options::default())
    }

    #[test]
    fn what_is_declared_is_in_the_plan() {
        let app = App::new("declared")
            .process("background", |p| p.scale(1).memory_limit(mib(512)).order(-1).env("A", "b").args(["-x"]))
            .process("mail", |p| p)
            .service::<Web>("shots", |s| s.process("background").publish())
            .service::<Web>("web", |s| s.config(Port { port: 1 }).depends_on("shots"))
            .service::<Web>("metrics", |s| s.every_process())
            .stop_timeout(Duration::from_secs(1));
        let plan = app.plan(&Options { dev: true, ..Options::default() }).unwrap();
        let names: Vec<_> = plan.processes.iter().map(|process| (&*process.name, process.scale)).collect();
        assert_eq!(names, [("background", 1), ("worker", 1), ("mail", 1)]);
        assert_eq!(plan.processes[0].memory_limit, Some(MemoryLimit::from(512 << 20)));
        assert_eq!(plan.processes[0].env["A"], "b");
        assert_eq!(plan.processes[0].args, ["-x"]);
        assert!(plan.services[0].is_published);
        assert_eq!(plan.services[1].depends_on, ["shots"]);
        assert_eq!(plan.services[2].processes, ["worker", "background", "mail"]);
        assert_eq!(plan.stop_timeout, Duration::from_secs(1));
    }

    #[test]
    fn the_scale_of_a_worker_is_that_of_the_machine() {
        let plan = planned(&App::new("scaled").service::<Web>("web", |s| s)).unwrap();
        assert_eq!(plan.processes[0].scale as usize, available_parallelism().unwrap().get());
    }

    #[test]
    fn a_process_declared_twice_is_told_and_an_implicit_one_is_not() {
        let app = App::new("twice").service::<Web>("web", |s| s);
        let app = app.process("worker", |p| p.scale(2));
        assert_eq!(planned(&app).unwrap().processes[0].scale, 2);
        let reasons = planned(&app.process("worker", |p| p)).unwrap_err().reasons;
        assert_eq!(reasons, ["process `worker` is declared 2 times"]);
    }

    #[test]
    fn code_file_and_names_are_all_told_at_once() {
        let directory = tempfile();
        let file = directory.join("faulty.toml");
        std::fs::write(&file, "[services.web]\nport = \"x\"\n[services.wbe]\n[processes.mail]\nscale = 2")
            .unwrap();
        let app = App::new("faulty").service::<Web>("web", |s| s.depends_on("shots"));
        let errors = app.plan(&Options { config: Some(file), ..Options::default() }).unwrap_err();
        std::fs::remove_dir_all(directory).unwrap();
        let told = errors.to_string();
        assert_eq!(errors.reasons.len(), 4, "{told}");
        assert!(told.starts_with("faulty cannot start:\n- service `web` depends on `shots`"), "{told}");
        for part in ["no service `wbe`", "no process `mail`", "key `port`"] {
            assert!(told.contains(part), "{part}: {told}");
        }
    }

    /// A directory of this test's own.
    fn tempfile() -> PathBuf {
        let directory = std::env::temp_dir().join(format!("objbus-app-{}-faulty", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        directory
    }
}
