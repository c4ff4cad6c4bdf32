//! A kernel's machine code, as nvdisasm prints it (Hopper's, sm_90), and what a thread executes of it for an element.

use std::collections::HashMap;
use std::ops::{Add, RangeInclusive};

use super::text::Plain;

#[derive(Debug)]
struct Instruction<'a> {
    /// The predicate under which it is executed.
    guard: Option<&'a str>,
    opcode: &'a str,
    operands: &'a str,
}

/// Instructions by what they do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Census {
    /// FP32, also those that compare and select.
    pub(crate) float: usize,
    /// Integers, logic, predicates, moves, addresses.
    pub(crate) integer: usize,
    pub(crate) memory: usize,
    pub(crate) control: usize,
}

/// Accesses: of global memory, 16 bytes at a time or fewer; of memory that only the hardware knows (generic); of a
/// thread's own (local: its stack and what it spills).
#[derive(Debug)]
pub(crate) struct Accesses {
    pub(crate) wide_loads: usize,
    pub(crate) wide_stores: usize,
    pub(crate) narrow_loads: usize,
    pub(crate) narrow_stores: usize,
    pub(crate) generic: usize,
    pub(crate) local: usize,
    /// Not accesses, but they would hide some. ptxas's own subroutines are not counted.
    pub(crate) calls: usize,
}

pub(crate) struct Sass<'a> {
    /// A thread goes through it once; through others it goes in rounds.
    is_straight: bool,
    instructions: Vec<Instruction<'a>>,
    labels: HashMap<&'a str, usize>,
}

impl<'a> Sass<'a> {
    /// A kernel and the subroutines that ptxas has put behind it.
    pub(crate) fn of(text: &'a str, kernel: &str) -> Self {
        let (_, section) = text.split_once(&format!("\n.text.{kernel}:\n")).expect("the kernel's section");
        let section = section.split("\n//---").next().unwrap_or_default();
        let is_straight = Plain::of(kernel).is_some() || kernel == "accumulate";
        let mut sass = Self { is_straight, instructions: Vec::new(), labels: HashMap::new() };
        for line in section.lines().map(str::trim) {
            if let Some(label) = line.strip_suffix(':') {
                sass.labels.insert(label, sass.instructions.len());
            } else if let Some((_, instruction)) = line.strip_prefix("/*").and_then(|line| line.split_once("*/")) {
                sass.instructions.push(Instruction::parse(instruction.trim_end_matches([' ', ';']).trim()));
            }
        }
        assert!(!sass.instructions.is_empty(), "{kernel}: the instructions are found");
        sass
    }

    /// In all of it.
    pub(crate) fn accesses(&self) -> Accesses {
        let code = &self.instructions;
        let all = |families: &[&str]| code.iter().filter(|access| families.contains(&access.family())).count();
        let wide = |family| code.iter().filter(|access| access.is_wide(family)).count();
        Accesses {
            wide_loads: wide("LDG"),
            wide_stores: wide("STG"),
            narrow_loads: all(&["LDG"]) - wide("LDG"),
            narrow_stores: all(&["STG"]) - wide("STG"),
            generic: all(&["LD", "ST", "ATOM"]),
            local: all(&["LDL", "STL"]),
            calls: code.iter().filter(|call| call.family() == "CALL" && !call.is_to_ptxas()).count(),
        }
    }

    /// What a thread executes, at most, of a straight kernel, or in one round of the longest loop, where no slow path is
    /// called.
    ///
    /// From the end to the start; each instruction's longest way to the end is itself and the longest way of those that
    /// may follow it. A call has no way.
    pub(crate) fn longest_way(&self) -> Option<Census> {
        let body = if self.is_straight { 0..=self.instructions.len() - 1 } else { self.longest_loop()? };
        let mut ways: Vec<Option<Census>> = vec![None; self.instructions.len()];
        for at in body.clone().rev() {
            let instruction = &self.instructions[at];
            let followers = self.followers(at).into_iter().filter(|next| (at + 1..=*body.end()).contains(next));
            let rest = followers.filter_map(|next| ways[next]).max_by_key(Census::all);
            let ends = if self.is_straight { instruction.family() == "EXIT" } else { at == *body.end() };
            let rest = if ends { rest.or(Some(Census::default())) } else { rest };
            ways[at] = rest.filter(|_| instruction.family() != "CALL").map(|rest| rest + instruction.census());
        }
        ways[*body.start()]
    }

    /// From the target of a branch back to that branch; not the endless loop that fills the end of every kernel.
    fn longest_loop(&self) -> Option<RangeInclusive<usize>> {
        let back = |at: usize| self.target(at).filter(|&target| target < at).map(|target| target..=at);
        (0..self.instructions.len()).filter_map(back).max_by_key(|body| body.end() - body.start())
    }

    fn followers(&self, at: usize) -> Vec<usize> {
        let instruction = &self.instructions[at];
        assert!(!["BRX", "JMX"].contains(&instruction.family()), "a jump through a table, of unknown targets");
        let leaves = ["BRA", "EXIT", "RET"].contains(&instruction.family());
        // `BRA P0, ...` may be taken or not, as may `@P0 BRA ...`.
        let always = instruction.guard.is_none() && !instruction.operands.contains(", `");
        let next = (!(leaves && always)).then_some(at + 1);
        next.into_iter().chain(self.target(at)).collect()
    }

    /// Where a branch goes to.
    fn target(&self, at: usize) -> Option<usize> {
        let branch = Some(&self.instructions[at]).filter(|instruction| instruction.family() == "BRA")?;
        let (_, label) = branch.operands.split_once("`(")?;
        Some(self.labels[label.trim_end_matches(')')])
    }
}

impl<'a> Instruction<'a> {
    fn parse(text: &'a str) -> Self {
        let word = |text: &'a str| text.split_once(' ').map_or((text, ""), |(word, rest)| (word, rest.trim()));
        let (guard, rest) = match text.strip_prefix('@').map(word) {
            Some((guard, rest)) => (Some(guard), rest),
            None => (None, text),
        };
        let (opcode, operands) = word(rest);
        Self { guard, opcode, operands }
    }

    /// `LDG` of `LDG.E.128`.
    fn family(&self) -> &'a str {
        self.opcode.split('.').next().unwrap_or_default()
    }

    /// Whether it is a 16-byte access of a family.
    fn is_wide(&self, family: &str) -> bool {
        self.family() == family && self.opcode.split('.').any(|part| part == "128")
    }

    /// A call of a subroutine by ptxas, such as that for what its inline division cannot divide: zero, infinity, NaN,
    /// subnormal numbers.
    fn is_to_ptxas(&self) -> bool {
        self.operands.contains("$__cuda_sm")
    }

    fn census(&self) -> Census {
        let one = |of: &[&str]| usize::from(of.contains(&self.family()));
        let memory = one(&[
            "LD", "ST", "LDG", "STG", "LDL", "STL", "LDS", "STS", "LDC", "ULDC", "ATOM", "ATOMG", "ATOMS", "RED",
        ]);
        let control = one(&["BRA", "EXIT", "RET", "CALL", "BSSY", "BSYNC", "BREAK", "WARPSYNC", "BAR", "NOP"]);
        let float = one(&["FADD", "FMUL", "FFMA", "FSETP", "FSEL", "FMNMX", "FCHK", "FSET", "MUFU"]);
        Census { float, integer: 1 - memory - control - float, memory, control }
    }
}

impl Census {
    pub(crate) fn arithmetic(&self) -> usize {
        self.float + self.integer
    }

    pub(crate) fn all(&self) -> usize {
        self.arithmetic() + self.memory + self.control
    }
}

impl Add for Census {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            float: self.float + other.float,
            integer: self.integer + other.integer,
            memory: self.memory + other.memory,
            control: self.control + other.control,
        }
    }
}

#[test]
fn the_longest_way_takes_the_longer_branch_and_no_slow_path() {
    let code = "
        /*0000*/                   LDG.E.128 R0, desc[UR4][R2.64] ;
.L_x_0:
        /*0010*/               @P0 BRA `(.L_x_1) ;
        /*0020*/                   FADD R0, R0, R1 ;
        /*0030*/                   FMUL R0, R0, R1 ;
        /*0040*/                   BRA `(.L_x_2) ;
.L_x_1:
        /*0050*/                   MOV R0, R1 ;
.L_x_2:
        /*0060*/              @!P1 BRA `(.L_x_3) ;
        /*0070*/                   IADD3 R0, R0, R1, RZ ;
        /*0080*/                   CALL.REL.NOINC `($__internal_0_$__cuda_sm20_sqrt_rn_f32_slowpath) ;
.L_x_3:
        /*0090*/                   STG.E desc[UR4][R2.64], R0 ;
        /*00a0*/               @P0 BRA `(.L_x_0) ;
        /*00b0*/                   EXIT ;
.L_x_4:
        /*00c0*/                   BRA `(.L_x_4);
";
    let of = |kernel: &str| format!("\n.text.{kernel}:{code}");
    let a_round = Sass::of(&of("k"), "k").longest_way();
    assert_eq!(a_round, Some(Census { float: 2, integer: 0, memory: 1, control: 4 }));
    let text = of("adamw_f32");
    let straight = Sass::of(&text, "adamw_f32");
    assert_eq!(straight.longest_way(), Some(Census { float: 2, integer: 0, memory: 2, control: 5 }));
    let accesses = straight.accesses();
    assert_eq!((accesses.wide_loads, accesses.narrow_stores, accesses.calls), (1, 1, 0));
}
