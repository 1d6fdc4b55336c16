//! What the script's text may say, read with a parser: only documented commands with documented parameters, nothing that
//! runs text, and no acting command without what it acts on, checked where it is given.
//!
//! The checker itself is tested first: each rule by a script that breaks it.

use berth_node_agent::driver::hyperv::script;
use berth_tests::process::root;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use tree_sitter::{Node, Parser, Tree};

/// `tests/hyperv/cmdlets.json`.
#[derive(Debug, Deserialize)]
pub(crate) struct Table {
    pub(crate) cmdlets: Vec<Cmdlet>,
    language: Vec<Plain>,
    types: BTreeSet<String>,
    methods: BTreeSet<String>,
}

/// A command that is about the host.
#[derive(Debug, Deserialize)]
pub(crate) struct Cmdlet {
    pub(crate) name: String,
    pub(crate) module: String,
    source: String,
    /// Parameters by the name of their set.
    pub(crate) sets: BTreeMap<String, BTreeSet<String>>,
    switches: BTreeSet<String>,
    /// Parameters that every call has, with the check that each comes straight from.
    #[serde(default)]
    must: BTreeMap<String, String>,
    /// Parameters that no call has.
    #[serde(default)]
    never: BTreeSet<String>,
}

/// A command that is about values.
#[derive(Debug, Deserialize)]
struct Plain {
    name: String,
    parameters: BTreeSet<String>,
}

pub(crate) fn table() -> Table {
    read(&["hyperv", "cmdlets.json"])
}

/// A table below `tests/`.
pub(crate) fn read(path: &[&str]) -> Table {
    let file = path.iter().fold(root().join("tests"), |dir, part| dir.join(part));
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

/// The one block that runs what a value says: a program of the node's settings in a guest, with its words as arguments. Nothing
/// in it is put together from text, and nothing but this may be in its place.
const RUNS_IN_GUEST: &str = "{
            param([string] $exe, [string[]] $arguments)
            $ErrorActionPreference = 'Continue'
            @{ berth = 'begins' }
            # A shell's code for what it cannot start.
            $code = 127
            try {
                # In a pipeline a program with a window is waited for, too.
                & $exe @arguments 2>&1 | Where-Object { $null -ne $_ }
                $code = $LASTEXITCODE
            } catch {
                [string]$_
            }
            @{ berth = 'ended'; code = $code }
        }";

/// One argument of a command: the parameter it follows, if any, and itself, if any.
struct Argument<'t> {
    parameter: Option<String>,
    value: Option<Node<'t>>,
}

pub(crate) struct Checker<'a> {
    text: &'a str,
    table: &'a Table,
    functions: BTreeSet<String>,
    /// Line and what is wrong there.
    pub(crate) found: Vec<String>,
    /// Commands about the host with the parameters they were given.
    pub(crate) used: BTreeMap<String, BTreeSet<String>>,
}

fn parse(text: &str) -> Tree {
    let mut parser = Parser::new();
    parser.set_language(&tree_sitter_powershell::LANGUAGE.into()).unwrap();
    parser.parse(text, None).unwrap()
}

fn children<'t>(node: Node<'t>, kind: &str) -> Vec<Node<'t>> {
    let mut cursor = node.walk();
    node.children(&mut cursor).filter(|child| child.kind() == kind).collect()
}

fn each<'t>(node: Node<'t>, visit: &mut impl FnMut(Node<'t>)) {
    visit(node);
    let mut cursor = node.walk();
    for child in node.children(&mut cursor) {
        each(child, visit);
    }
}

impl<'a> Checker<'a> {
    pub(crate) fn check(text: &'a str, table: &'a Table) -> Self {
        let tree = parse(text);
        let mut checker = Self { text, table, functions: BTreeSet::new(), found: Vec::new(), used: BTreeMap::new() };
        each(tree.root_node(), &mut |node| {
            if node.kind() == "function_name" {
                checker.functions.insert(text[node.byte_range()].to_owned());
            }
        });
        for name in table.cmdlets.iter().map(|c| &c.name).chain(table.language.iter().map(|c| &c.name)) {
            if checker.functions.contains(name) {
                checker.found.push(format!("a function takes the name of {name}"));
            }
        }
        each(tree.root_node(), &mut |node| checker.node(node));
        checker
    }

    fn of(&self, node: Node<'_>) -> &'a str {
        &self.text[node.byte_range()]
    }

    fn say(&mut self, node: Node<'_>, what: &str) {
        let line = node.start_position().row + 1;
        let text: String = self.of(node).chars().take(60).collect();
        self.found.push(format!("{line}: {what}: {text}"));
    }

    /// Whether a node is in the one block that may run what a value says.
    fn in_guest(&self, node: Node<'_>) -> bool {
        std::iter::successors(node.parent(), Node::parent)
            .any(|up| up.kind() == "script_block_expression" && self.of(up) == RUNS_IN_GUEST)
    }

    fn node(&mut self, node: Node<'_>) {
        if node.is_error() || node.is_missing() {
            self.say(node, "does not parse");
        }
        match node.kind() {
            "command" => self.command(node),
            "command_invokation_operator" | "merging_redirection_operator" if self.in_guest(node) => {}
            "command_invokation_operator" => self.say(node, "runs what a value says"),
            "type_literal" => {
                let name = self.of(node).trim_start_matches('[');
                let name = name.strip_suffix(']').unwrap_or(name);
                if !self.table.types.contains(name) {
                    self.say(node, "type is not in the table");
                }
            }
            "invokation_expression" => {
                let name = children(node, "member_name").pop();
                let plain = name.filter(|name| !children(*name, "simple_name").is_empty());
                if !plain.is_some_and(|name| self.table.methods.contains(self.of(name))) {
                    self.say(node, "method is not in the table");
                }
            }
            "script_block_expression" => {
                let command = std::iter::successors(node.parent(), Node::parent).find(|up| up.kind() == "command");
                let name = command.and_then(|command| children(command, "command_name").pop());
                let name = name.map(|name| self.of(name));
                if !matches!(name, Some("Where-Object" | "Invoke-Command")) {
                    self.say(node, "a script block that is no argument of Where-Object or Invoke-Command");
                }
            }
            "redirected_file_name" => self.say(node, "writes into a file"),
            "generic_token" if self.of(node).contains('>') => {
                let to_nothing = self.of(node).split_once('>').is_some_and(|(stream, to)| {
                    stream.len() == 1 && stream.bytes().all(|b| b.is_ascii_digit()) && to == "$null"
                });
                if !to_nothing {
                    self.say(node, "writes into a file");
                }
            }
            "variable" if self.of(node).starts_with('@') && !self.in_guest(node) => {
                self.say(node, "hides its parameters")
            }
            "variable" if self.of(node).eq_ignore_ascii_case("$ExecutionContext") => {
                self.say(node, "leads to running text")
            }
            _ => {}
        }
    }

    fn command(&mut self, node: Node<'_>) {
        // With a call operator there is no name; that was said then.
        let Some(name) = children(node, "command_name").pop() else { return };
        let name = self.of(name);
        let table = self.table;
        if self.functions.contains(name) {
            return;
        }
        let arguments = children(node, "command_elements").pop().map_or_else(Vec::new, |all| self.arguments(all, name));
        if let Some(plain) = table.language.iter().find(|plain| plain.name == name) {
            for argument in &arguments {
                match (&argument.parameter, argument.value) {
                    (Some(parameter), _) if !plain.parameters.contains(parameter) && parameter != "ErrorAction" => {
                        self.say(node, &format!("-{parameter} is not in the table"));
                    }
                    (None, Some(value)) if name == "New-Object" && value.kind() == "generic_token" => {
                        if !table.types.contains(self.of(value)) {
                            self.say(node, "type is not in the table");
                        }
                    }
                    (Some(_) | None, _) => {}
                }
            }
            if name == "New-Object"
                && arguments.first().and_then(|a| a.value).is_none_or(|v| v.kind() != "generic_token")
            {
                self.say(node, "type is not named");
            }
        } else if let Some(cmdlet) = table.cmdlets.iter().find(|cmdlet| cmdlet.name == name) {
            self.cmdlet(node, cmdlet, &arguments);
        } else {
            self.say(node, "command is not in the table");
        }
    }

    fn cmdlet(&mut self, node: Node<'_>, cmdlet: &Cmdlet, arguments: &[Argument<'_>]) {
        let given: BTreeSet<String> = arguments.iter().filter_map(|argument| argument.parameter.clone()).collect();
        let documented = |set: &BTreeSet<String>| given.iter().all(|p| p == "ErrorAction" || set.contains(p));
        for parameter in &given {
            if parameter != "ErrorAction" && !cmdlet.sets.values().any(|set| set.contains(parameter)) {
                self.say(node, &format!("-{parameter} is not documented"));
            }
            if cmdlet.never.contains(parameter) {
                self.say(node, &format!("-{parameter} is never used"));
            }
        }
        if !cmdlet.sets.values().any(documented) {
            self.say(node, "no parameter set has all of these");
        }
        if arguments.iter().any(|argument| argument.parameter.is_none()) {
            self.say(node, "an argument without its parameter's name");
        }
        for (parameter, check) in &cmdlet.must {
            let argument = arguments.iter().find(|argument| argument.parameter.as_ref() == Some(parameter));
            let value = argument.and_then(|argument| argument.value).map(|value| self.of(value));
            let from_check = value.and_then(|v| v.strip_prefix('(')).and_then(|v| v.strip_prefix(check.as_str()));
            if !from_check
                .is_some_and(|rest| rest.starts_with(' ') && rest.ends_with(')') && !rest.contains(['|', ';']))
            {
                self.say(node, &format!("-{parameter} must be given as ({check} …)"));
            }
        }
        if given.contains("ArgumentList") {
            let block = arguments.iter().find(|argument| argument.parameter.as_deref() == Some("ScriptBlock"));
            if block.and_then(|block| block.value).is_none_or(|value| self.of(value) != RUNS_IN_GUEST) {
                self.say(node, "arguments for another block than the one that runs a program in a guest");
            }
        }
        let stops = arguments.iter().any(|argument| {
            argument.parameter.as_deref() == Some("ErrorAction") && argument.value.is_some_and(|v| self.of(v) == "Stop")
        });
        if !stops {
            self.say(node, "without -ErrorAction Stop");
        }
        self.used.entry(cmdlet.name.clone()).or_default().extend(given.into_iter().filter(|p| p != "ErrorAction"));
    }

    fn arguments<'t>(&self, elements: Node<'t>, name: &str) -> Vec<Argument<'t>> {
        let cmdlet = self.table.cmdlets.iter().find(|cmdlet| cmdlet.name == name);
        let mut arguments: Vec<Argument<'t>> = Vec::new();
        let (mut waiting, mut joined) = (false, false);
        let mut cursor = elements.walk();
        for element in elements.children(&mut cursor) {
            match element.kind() {
                "command_argument_sep" => joined = self.of(element).contains(':'),
                "command_parameter" => {
                    let parameter = self.of(element).trim_start_matches('-').trim_end_matches(':').to_owned();
                    waiting = cmdlet.is_none_or(|cmdlet| !cmdlet.switches.contains(&parameter));
                    arguments.push(Argument { parameter: Some(parameter), value: None });
                }
                "redirection" => {}
                "generic_token" if self.of(element).contains('>') => {}
                _ => {
                    match arguments.last_mut().filter(|last| (waiting || joined) && last.parameter.is_some()) {
                        Some(last) if last.value.is_none() => last.value = Some(element),
                        Some(_) | None => arguments.push(Argument { parameter: None, value: Some(element) }),
                    }
                    (waiting, joined) = (false, false);
                }
            }
        }
        arguments
    }
}

/// What is wrong with a script, the checks of the real one being there.
fn found(text: &str) -> Vec<String> {
    let checks: Vec<_> = table().cmdlets.iter().flat_map(|cmdlet| cmdlet.must.values().cloned()).collect();
    let checks: String = checks.iter().map(|check| format!("function {check}($a, $b) {{ $a }}\n")).collect();
    let text = if text == script::TEXT { text.to_owned() } else { checks + text };
    Checker::check(&text, &table()).found
}

#[test]
fn the_script_calls_only_what_is_documented_and_runs_no_text() {
    let found = found(script::TEXT);
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn the_checker_finds_each_kind_of_violation() {
    let cases = [
        ("Get-VM -ErrorAction Stop", None),
        (
            "$null = Mount-VMHostAssignableDevice -LocationPath (Confirm-LocationPath $p) -Confirm:$false -ErrorAction Stop",
            None,
        ),
        ("$x = @(Get-PnpDevice -PresentOnly -ErrorAction Stop | Where-Object { $_.A -ceq 'b' })", None),
        ("Get-Thing 3>$null", Some("command is not in the table")),
        ("iex $x", Some("command is not in the table")),
        ("Invoke-Expression \"Get-VM $x\"", Some("command is not in the table")),
        ("\"$(Invoke-Expression $x)\"", Some("command is not in the table")),
        ("@(1) | % { $_ }", Some("command is not in the table")),
        ("& $x", Some("runs what a value says")),
        (
            "Invoke-Command -VMId (Confirm-VmId $i) -Credential $c -ErrorAction Stop -ScriptBlock { & $exe }",
            Some("runs what a value says"),
        ),
        (
            "Invoke-Command -VMId (Confirm-VmId $i) -Credential $c -ErrorAction Stop -ArgumentList $x -ScriptBlock { 1 }",
            Some("arguments for another block"),
        ),
        (
            "Invoke-Command -VMId (Confirm-VmId $i) -Credential $c -ErrorAction Stop -ArgumentList $x -ScriptBlock $y",
            Some("arguments for another block"),
        ),
        ("Receive-Job -Job $job -ErrorAction Stop", Some("-Job must be given as (Confirm-GuestJob …)")),
        ("& 'Get-VM'", Some("runs what a value says")),
        (". $file", Some("runs what a value says")),
        ("[scriptblock]::Create($x)", Some("type is not in the table")),
        ("$x = [System.Diagnostics.Process]", Some("type is not in the table")),
        ("New-Object System.Net.WebClient", Some("type is not in the table")),
        ("New-Object $type", Some("type is not named")),
        ("$ps.AddScript($x)", Some("method is not in the table")),
        ("$x.$method('a')", Some("method is not in the table")),
        ("$b = { Get-VM -ErrorAction Stop }", Some("a script block that is no argument")),
        ("$ExecutionContext.A", Some("leads to running text")),
        ("'a' | Where-Object { $_ } > out.txt", Some("writes into a file")),
        ("Start-Sleep -Seconds 1", Some("-Seconds is not in the table")),
        ("Get-VM -Idd $x -ErrorAction Stop", Some("-Idd is not documented")),
        ("Get-VMHostAssignableDevice -LocationPath $x -ErrorAction Stop", Some("-LocationPath is never used")),
        ("Get-VM", Some("without -ErrorAction Stop")),
        ("Get-VM -ErrorAction SilentlyContinue", Some("without -ErrorAction Stop")),
        ("Get-VM $x -ErrorAction Stop", Some("an argument without its parameter's name")),
        ("Get-VMAssignableDevice @given -ErrorAction Stop", Some("hides its parameters")),
        (
            "Mount-VMHostAssignableDevice -ErrorAction Stop",
            Some("-LocationPath must be given as (Confirm-LocationPath …)"),
        ),
        ("Mount-VMHostAssignableDevice -LocationPath $p -ErrorAction Stop", Some("-LocationPath must be given")),
        ("Mount-VMHostAssignableDevice -LocationPath '' -ErrorAction Stop", Some("-LocationPath must be given")),
        (
            "Mount-VMHostAssignableDevice -LocationPath (Confirm-LocationPath $p; '') -ErrorAction Stop",
            Some("-LocationPath must be given"),
        ),
        ("$all | Mount-VMHostAssignableDevice -ErrorAction Stop", Some("-LocationPath must be given")),
        ("Remove-VMAssignableDevice -VMName $n -ErrorAction Stop", Some("-VMAssignableDevice must be given")),
        ("$d | Remove-VMAssignableDevice -ErrorAction Stop", Some("-VMAssignableDevice must be given")),
        (
            "Add-VMAssignableDevice -VM (Confirm-Vm $v $i) -ResourcePoolName 'Primordial' -ErrorAction Stop",
            Some("-LocationPath must be given"),
        ),
        ("Remove-ClusterGroup -RemoveResources -Force -ErrorAction Stop", Some("-VMId must be given")),
        ("Stop-VM -VM (Confirm-Vm $v $i) -Save -ErrorAction Stop", Some("-Save is never used")),
        ("Stop-VM -VM $v -ErrorAction Stop", Some("-VM must be given as (Confirm-Vm …)")),
        ("Disable-PnpDevice -InstanceId '*' -ErrorAction Stop", Some("-InstanceId must be given")),
        ("Get-VM -Id $x -ClusterObject $y -ErrorAction Stop", Some("no parameter set has all of these")),
        ("function Get-VM { 1 }", Some("a function takes the name of Get-VM")),
        ("if (", Some("does not parse")),
    ];
    for (text, expected) in cases {
        let found = found(text);
        match expected {
            None => assert!(found.is_empty(), "{text}\n{found:?}"),
            Some(expected) => assert!(found.iter().any(|f| f.contains(expected)), "{text}\n{found:?}"),
        }
    }
}

#[test]
fn the_checks_that_arguments_come_from_are_the_scripts_own() {
    let table = table();
    let checker = Checker::check(script::TEXT, &table);
    for cmdlet in &table.cmdlets {
        assert!(cmdlet.source.contains(&cmdlet.name), "{}: its source is {}", cmdlet.name, cmdlet.source);
        assert!(checker.used.contains_key(&cmdlet.name), "{} is in the table and nobody calls it", cmdlet.name);
        for check in cmdlet.must.values() {
            assert!(checker.functions.contains(check), "{}: there is no {check}", cmdlet.name);
        }
    }
    // Whatever can change a host has something that it must be given.
    for cmdlet in &table.cmdlets {
        let reads = cmdlet.name.starts_with("Get-");
        assert!(reads || !cmdlet.must.is_empty(), "{} may be called with nothing", cmdlet.name);
    }
}

/// Quoted words below a node.
fn words(node: Node<'_>, text: &str) -> BTreeSet<String> {
    let mut words = BTreeSet::new();
    each(node, &mut |node| {
        if node.kind() == "verbatim_string_characters" {
            words.insert(text[node.byte_range()].trim_matches('\'').to_owned());
        }
    });
    words
}

#[test]
fn what_hello_looks_for_is_what_the_script_uses() {
    let table = table();
    let checker = Checker::check(script::TEXT, &table);
    let mut asked: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    each(parse(script::TEXT).root_node(), &mut |node| {
        if node.kind() != "hash_entry" {
            return;
        }
        let key = children(node, "key_expression").pop().map(|key| script::TEXT[key.byte_range()].trim_matches('\''));
        if let (Some(key), Some(value)) = (key, children(node, "pipeline").pop())
            && table.cmdlets.iter().any(|cmdlet| cmdlet.name == key)
        {
            asked.entry(key.to_owned()).or_default().extend(words(value, script::TEXT));
        }
    });
    let modules = ["Hyper-V", "PnpDevice", "FailoverClusters"];
    let of_modules = |name: &String| {
        table.cmdlets.iter().any(|cmdlet| cmdlet.name == *name && modules.contains(&cmdlet.module.as_str()))
    };
    let used: BTreeMap<_, _> = checker.used.into_iter().filter(|(name, _)| of_modules(name)).collect();
    assert_eq!(asked, used);
}
