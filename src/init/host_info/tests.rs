//! The host's tree: boards as they are, boards with one thing wrong, and mutants.

use std::process::Command;

use super::*;
use crate::vmm::test_support::{Mutations, dts};

/// QEMU's `virt` with virtualization=on, cut down to what keel reads.
const VIRT: &str = r#"
/memreserve/ 0x48000000 0x1000;
/ {
    interrupt-parent = <0x8003>;
    model = "linux,dummy-virt";
    #address-cells = <2>;
    #size-cells = <2>;
    compatible = "linux,dummy-virt";
    psci { method = "smc"; compatible = "arm,psci-1.0", "arm,psci-0.2", "arm,psci"; };
    memory@40000000 { reg = <0 0x40000000 0 0x20000000>; device_type = "memory"; };
    memory@80000000 { reg = <0 0x80000000 0 0x1000000 0 0x60000000 0 0x20000000>; device_type = "memory"; };
    secram@e000000 { reg = <0 0xe000000 0 0x1000000>; device_type = "memory"; status = "disabled"; };
    reserved-memory {
        #address-cells = <2>; #size-cells = <2>; ranges;
        secure@60000000 { reg = <0 0x60000000 0 0x200000>; no-map; };
        pool { size = <0 0x100000>; };
    };
    pl031@9010000 { interrupts = <0 2 4>; reg = <0 0x9010000 0 0x1000>; compatible = "arm,pl031", "arm,primecell"; };
    pl011@9040000 { interrupts = <0 8 4>; reg = <0 0x9040000 0 0x1000>; compatible = "arm,pl011", "arm,primecell"; };
    pl011@9000000 { interrupts = <0 1 4>; reg = <0 0x9000000 0 0x1000>; compatible = "arm,pl011", "arm,primecell"; };
    intc@8000000 {
        phandle = <0x8003>;
        interrupts = <1 9 4>;
        reg = <0 0x8000000 0 0x10000 0 0x80a0000 0 0xf60000>;
        #redistributor-regions = <1>;
        compatible = "arm,gic-v3";
        interrupt-controller;
        #interrupt-cells = <3>;
    };
    cpus {
        #address-cells = <1>; #size-cells = <0>;
        cpu-map { };
        cpu@0 { reg = <0>; enable-method = "psci"; device_type = "cpu"; };
        cpu@1 { reg = <1>; enable-method = "psci"; device_type = "cpu"; };
        cpu@2 { reg = <2>; enable-method = "psci"; device_type = "cpu"; status = "fail"; };
        cpu@100 { reg = <0x100>; enable-method = "psci"; device_type = "cpu"; };
    };
    timer { interrupts = <1 13 4 1 14 4 1 11 4 1 10 4>; compatible = "arm,armv8-timer", "arm,armv7-timer"; };
    aliases { serial0 = "/pl011@9000000"; };
    chosen {
        linux,initrd-start = <0x44000000>;
        linux,initrd-end = <0 0x44001234>;
        bootargs = "keel.loglevel=debug quiet keel.stats=1";
        stdout-path = "/pl011@9000000";
        rng-seed = <1 2>;
    };
};"#;

/// The shape of a Raspberry Pi 4: devices behind a bus, GICv2, spin-table, alias with options.
const PI: &str = r#"
/ {
    #address-cells = <2>; #size-cells = <1>;
    interrupt-parent = <1>;
    compatible = "raspberrypi,4-model-b", "brcm,bcm2711";
    aliases { serial0 = "/soc/serial@7e201000"; serial1 = "/soc/serial@7e215040"; };
    chosen { stdout-path = "serial0:115200n8"; };
    memory@0 { device_type = "memory"; reg = <0 0 0x3b400000 0 0x40000000 0x40000000>; };
    soc {
        compatible = "simple-bus"; #address-cells = <1>; #size-cells = <1>;
        ranges = <0x7e000000 0 0xfe000000 0x1800000 0x40000000 0 0xff800000 0x800000>;
        serial@7e215040 { compatible = "brcm,bcm2835-aux-uart"; reg = <0x7e215040 0x40>; interrupts = <0 93 4>; };
        serial@7e201000 { compatible = "arm,pl011", "arm,primecell"; reg = <0x7e201000 0x200>; interrupts = <0 121 4>; };
        interrupt-controller@40041000 {
            compatible = "arm,gic-400"; interrupt-controller; #interrupt-cells = <3>; phandle = <1>;
            reg = <0x40041000 0x1000 0x40042000 0x2000 0x40044000 0x2000 0x40046000 0x2000>;
            interrupts = <1 9 0xf04>;
        };
    };
    timer { compatible = "arm,armv8-timer"; interrupts = <1 13 0xf08 1 14 0xf08 1 11 0xf08 1 10 0xf08>; };
    cpus {
        #address-cells = <1>; #size-cells = <0>; enable-method = "brcm,bcm2836-smp";
        cpu@0 { device_type = "cpu"; reg = <0>; enable-method = "spin-table"; cpu-release-addr = <0 0xd8>; };
        cpu@1 { device_type = "cpu"; reg = <1>; enable-method = "spin-table"; cpu-release-addr = <0 0xe0>; };
    };
};"#;

fn span(base: u64, size: u64) -> Span {
    Span { base: Pa(base), size }
}

fn ppi(number: u32, flags: u32) -> Interrupt {
    Interrupt { intid: 16 + number, flags }
}

#[test]
fn virt_is_understood() {
    let info = HostInfo::parse(&dts(VIRT)).unwrap();
    assert_eq!(info.model, "linux,dummy-virt");
    // The two nodes have neighbouring regions, and none is the secure one.
    assert_eq!(info.memory, [span(0x4000_0000, 0x4100_0000)]);
    let reserved: Vec<_> = info.reservations.iter().map(|one| (one.span.base.0, one.no_map, &*one.by)).collect();
    assert_eq!(
        reserved,
        [(0x4800_0000, false, "/memreserve/"), (0x6000_0000, true, "/reserved-memory/secure@60000000")]
    );
    assert_eq!(info.cpus.iter().map(|cpu| cpu.mpidr).collect::<Vec<_>>(), [0, 1, 0x100]);
    assert!(info.cpus.iter().all(|cpu| cpu.start == Start::Psci));
    assert_eq!(info.psci, Some(Psci { conduit: Conduit::Smc, version: PsciVersion::V1_0 }));
    let Gic::V3(gic) = &info.gic else { panic!("{:?}", info.gic) };
    assert_eq!(gic.distributor, span(0x800_0000, 0x1_0000));
    assert_eq!(gic.redistributors, [span(0x80a_0000, 0xf6_0000)]);
    assert_eq!((gic.maintenance, gic.phandle, gic.stride), (ppi(9, 4), Some(0x8003), None));
    let console = info.console.unwrap();
    assert_eq!(console.uart, Uart { model: UartModel::Pl011, base: Pa(0x900_0000), size: 0x1000 });
    assert_eq!(console.interrupt, Some(Interrupt { intid: 33, flags: 4 }));
    assert_eq!(console.path, "/pl011@9000000");
    assert_eq!((info.timers.virt, info.timers.hypervisor), (ppi(11, 4), ppi(10, 4)));
    assert_eq!((info.timers.physical, info.timers.secure), (ppi(14, 4), Some(ppi(13, 4))));
    assert_eq!(info.rtc, Some(span(0x901_0000, 0x1000)));
    assert_eq!(info.initrd, Some(span(0x4400_0000, 0x1234)));
    assert_eq!(info.options, KeelOptions { log_level: log::LevelFilter::Debug, stats: true, crash: None });
    assert_eq!(info.rng_seed, [0, 0, 0, 1, 0, 0, 0, 2]);
    assert_eq!(info.warnings, [""; 0]);
}

#[test]
fn a_pi_is_understood() {
    let info = HostInfo::parse(&dts(PI)).unwrap();
    assert_eq!(info.memory, [span(0, 0x3b40_0000), span(0x4000_0000, 0x4000_0000)]);
    let Gic::V2(gic) = &info.gic else { panic!("{:?}", info.gic) };
    assert_eq!(gic.distributor.base, Pa(0xff84_1000));
    assert_eq!(gic.virtual_cpu_interface, span(0xff84_6000, 0x2000));
    assert_eq!(gic.maintenance, ppi(9, 4));
    let console = info.console.unwrap();
    assert_eq!(console.uart.base, Pa(0xfe20_1000));
    assert_eq!(console.interrupt.unwrap().intid, 32 + 121);
    assert_eq!(info.cpus[1].start, Start::SpinTable { release: Pa(0xe0) });
    assert_eq!(info.psci, None);
    assert_eq!(info.model, "raspberrypi,4-model-b");
}

/// Each row: what to replace in `VIRT`, by what, and the message that has to come.
const WRONG: &[(&str, &str, &str)] = &[
    (
        "device_type = \"memory\";",
        "",
        "device tree: no child of / with device_type \"memory\" and a reg that is not empty; the boot loader has to \
         fill in the memory node",
    ),
    (
        "reg = <0 0x40000000 0 0x20000000>",
        "reg = <0 0x40000000 0>",
        "/memory@40000000: property reg is <0x0 0x40000000 0x0>, expected a multiple of 16 bytes; correct the tree \
         (dtc -I dtb -O dts shows it)",
    ),
    (
        "reg = <0 0x40000000 0 0x20000000>",
        "reg = <0 0x40000000 0xffffffff 0xffffffff>",
        "/memory@40000000: property reg is <0x0 0x40000000 0xffffffff 0xffffffff>, expected addresses of no more than \
         64 bits; correct the tree (dtc -I dtb -O dts shows it)",
    ),
    (
        "interrupts = <1 9 4>;",
        "",
        "/intc@8000000: property interrupts is missing, expected the maintenance interrupt, a PPI; the machine must \
         have its virtualisation extensions on (QEMU: -M virt,virtualization=on)",
    ),
    (
        "interrupts = <1 9 4>;",
        "interrupts = <0 9 4>;",
        "/intc@8000000: property interrupts is interrupt 41, expected a private interrupt, 16 to 31; correct the tree \
         (dtc -I dtb -O dts shows it)",
    ),
    (
        "compatible = \"arm,gic-v3\"",
        "compatible = \"arm,gic-v5\"",
        "device tree: no interrupt controller with compatible one of arm,gic-v3, arm,gic-400, arm,cortex-a15-gic, \
         arm,cortex-a7-gic, arm,eb11mp-gic; keel needs a GICv2 or GICv3: use a machine that has one",
    ),
    (
        "#redistributor-regions = <1>",
        "#redistributor-regions = <2>",
        "/intc@8000000: property reg is <0x0 0x8000000 0x0 0x10000 0x0 0x80a0000 0x0 0xf60000>, expected GICD and as \
         many GICR regions as #redistributor-regions says, 2; correct the tree (dtc -I dtb -O dts shows it)",
    ),
    (
        "1 10 4>; compatible = \"arm,armv8-timer\"",
        "0 10 4>; compatible = \"arm,armv8-timer\"",
        "/timer: property interrupts is <0x1 0xd 0x4 0x1 0xe 0x4 0x1 0xb ...>, expected the hypervisor timer's PPI as \
         fourth (\"hyp-phys\"); correct the tree (dtc -I dtb -O dts shows it)",
    ),
    (
        "\"arm,armv8-timer\", \"arm,armv7-timer\"",
        "\"arm,cortex-a9-global-timer\"",
        "device tree: no timer with compatible \"arm,armv8-timer\"; correct the tree (dtc -I dtb -O dts shows it)",
    ),
    (
        "interrupt-parent = <0x8003>",
        "interrupt-parent = <0x8004>",
        "/: property interrupt-parent is <0x8004>, expected the phandle of an interrupt controller; correct the tree \
         (dtc -I dtb -O dts shows it)",
    ),
    (
        "#interrupt-cells = <3>;",
        "",
        "/intc@8000000: property #interrupt-cells is missing, expected a number from 1 to 8; correct the tree \
         (dtc -I dtb -O dts shows it)",
    ),
    (
        "cpu@1 { reg = <1>",
        "cpu@1 { reg = <0>",
        "/cpus/cpu@1: property reg is 0x0, expected another MPIDR than /cpus/cpu@0; correct the tree \
         (dtc -I dtb -O dts shows it)",
    ),
    (
        "cpu@1 { reg = <1>",
        "cpu@1 { reg = <0x80000001>",
        "/cpus/cpu@1: property reg is <0x80000001>, expected the affinity fields of its MPIDR in one or two cells; \
         correct the tree (dtc -I dtb -O dts shows it)",
    ),
    (
        "compatible = \"arm,psci-1.0\", \"arm,psci-0.2\", \"arm,psci\"",
        "compatible = \"none\"",
        "device tree: no child of / with compatible \"arm,psci-0.2\" or later, which /cpus/cpu@0 is started by; \
         correct the tree (dtc -I dtb -O dts shows it)",
    ),
    (
        "method = \"smc\"",
        "method = \"abc\"",
        "/psci: property method is \"abc\", expected \"smc\" or \"hvc\"; correct the tree (dtc -I dtb -O dts shows it)",
    ),
    (
        "linux,initrd-end = <0 0x44001234>",
        "linux,initrd-end = <0x43000000>",
        "/chosen: property linux,initrd-end is 0x43000000, expected no less than linux,initrd-start, 0x44000000; give \
         keel its bundle in the boot loader's initrd slot again",
    ),
];

#[test]
fn what_is_wrong_is_said() {
    for (right, wrong, message) in WRONG {
        assert!(VIRT.contains(right), "{right}");
        let result = HostInfo::parse(&dts(&VIRT.replace(right, wrong)));
        let error = result.err().unwrap_or_else(|| panic!("{right} -> {wrong}")).to_string();
        assert!(error.starts_with(message), "{right} -> {wrong}\n    gave {error}\nexpected {message}");
    }
    let error = HostInfo::parse(&[]).unwrap_err().to_string();
    assert!(error.starts_with("device tree: begins with 0x00000000, expected 0xd00dfeed"), "{error}");
}

#[test]
fn what_is_odd_is_a_warning() {
    let odd = VIRT
        .replace("keel.stats=1", "keel.stats=2 keel.fast keel.loglevel=loud")
        .replace("cpu@1 { reg = <1>; enable-method = \"psci\"", "cpu@1 { reg = <1>; enable-method = \"magic\"")
        .replace("reg = <0 0x9010000 0 0x1000>", "reg = <0>");
    let info = HostInfo::parse(&dts(&odd)).unwrap();
    assert_eq!(info.rtc, None);
    assert_eq!(info.cpus[1].start, Start::Unknown);
    assert_eq!(info.options.log_level, log::LevelFilter::Debug, "the wrong one changes nothing");
    let warnings = info.warnings.join("\n");
    for part in [
        "keel.stats is \"2\", expected 0 or 1",
        "unknown option keel.fast",
        "keel.loglevel is \"loud\", expected error, warn",
        "/cpus/cpu@1: enable-method is \"magic\", keel knows psci and spin-table",
        "no real-time clock: /pl031@9010000: property reg",
    ] {
        assert!(warnings.contains(part), "{part} in\n{warnings}");
    }
}

#[test]
fn a_bad_release_address_is_only_that_cpus_problem() {
    for (right, wrong, found) in [
        ("cpu-release-addr = <0 0xe0>;", "", "missing"),
        ("cpu-release-addr = <0 0xe0>", "cpu-release-addr = <0 0>", "<0x0 0x0>"),
        ("cpu-release-addr = <0 0xe0>", "cpu-release-addr = <0xe4>", "<0xe4>"),
        ("cpu-release-addr = <0 0xe0>", "cpu-release-addr = <0 0 0xe0>", "<0x0 0x0 0xe0>"),
    ] {
        assert!(PI.contains(right), "{right}");
        let info = HostInfo::parse(&dts(&PI.replace(right, wrong))).unwrap();
        let starts: Vec<_> = info.cpus.iter().map(|cpu| cpu.start).collect();
        assert_eq!(starts[..2], [Start::SpinTable { release: Pa(0xd8) }, Start::Unknown], "{wrong}");
        let expected = format!(
            "/cpus/cpu@1: property cpu-release-addr is {found}, expected an address, 8-byte aligned and not 0, in one or \
             two cells; firmware that holds the CPU has to fill it in; until then this CPU cannot be started"
        );
        assert!(info.warnings.contains(&expected), "{:?}", info.warnings);
    }
}

#[test]
fn consoles() {
    let base = |source: &str| {
        let blob = dts(source);
        let early = console_only(&blob);
        if let Ok(info) = HostInfo::parse(&blob) {
            assert_eq!(info.console.ok().map(|console| console.uart), early.ok(), "{source}");
        }
        early.map(|uart| uart.base.0).map_err(|error| error.to_string())
    };
    assert_eq!(base(VIRT), Ok(0x900_0000));
    assert_eq!(
        base(&VIRT.replace("stdout-path = \"/pl011@9000000\"", "stdout-path = \"serial0:9600\"")),
        Ok(0x900_0000)
    );
    // Nothing named, or nothing there: the first that is known.
    assert_eq!(base(&VIRT.replace("stdout-path = \"/pl011@9000000\";", "")), Ok(0x904_0000));
    assert_eq!(base(&VIRT.replace("stdout-path = \"/pl011@9000000\"", "stdout-path = \"/uart\"")), Ok(0x904_0000));
    let on = "compatible = \"arm,pl011\", \"arm,primecell\"; };\n    intc";
    assert!(VIRT.contains(on));
    assert_eq!(base(&VIRT.replace(on, &on.replace("; }", "; status = \"disabled\"; }"))), Ok(0x904_0000));
    assert_eq!(base(PI), Ok(0xfe20_1000));
    let aux = PI.replace("serial0:115200n8", "serial1:115200n8");
    assert_eq!(base(&aux), Err("the path of a brcm,bcm2835-aux-uart".into()));
    let error = HostInfo::parse(&dts(&aux)).unwrap().console.unwrap_err().to_string();
    assert_eq!(
        error,
        "/chosen: property stdout-path is the path of /soc/serial@7e215040, compatible \"brcm,bcm2835-aux-uart\", \
         expected a UART compatible one of arm,pl011, arm,sbsa-uart; name such a UART there, or add a driver for this \
         one"
    );
    assert_eq!(base("/ { };"), Err("no UART of a known kind".into()));
}

#[test]
fn a_console_is_found_in_a_damaged_tree() {
    let mut blob = dts(VIRT);
    // Everything behind the UART's node is rubbish.
    let needle = b"intc@8000000\0";
    let at = blob.windows(needle.len()).position(|window| window == needle).unwrap();
    let strings = u32::from_be_bytes(*blob[12..].first_chunk().unwrap()) as usize;
    blob[at..strings].fill(0xff);
    assert!(HostInfo::parse(&blob).is_err());
    assert_eq!(console_only(&blob).unwrap().base, Pa(0x904_0000), "/chosen is lost, so the first");
    // Cut off, as when a boot loader copied too little: the strings have to be there, so only the header lies.
    let mut long = dts(VIRT);
    long[4..8].copy_from_slice(&0x10_0000u32.to_be_bytes());
    assert!(HostInfo::parse(&long).is_err());
    assert_eq!(console_only(&long).unwrap().base, Pa(0x900_0000));
}

#[test]
fn interrupts_are_found_by_every_way() {
    let source = r#"/ {
        #address-cells = <1>; #size-cells = <1>;
        gic { compatible = "arm,gic-v3"; #interrupt-cells = <4>; phandle = <1>; interrupt-controller; };
        gpio { #interrupt-cells = <2>; phandle = <2>; interrupt-controller; };
        own { interrupt-parent = <1>; interrupts = <0 5 1 0 2 6 4 0 3 7 4 0>; };
        bus { interrupt-parent = <1>; deep { a { interrupts = <1 3 8 0>; }; }; };
        extended { interrupts-extended = <2 9 9 1 0 8 4 0>; };
        short { interrupts-extended = <1 0 8 4>; };
        lost { interrupts = <0 5 1>; };
        large { interrupt-parent = <1>; interrupts = <0 988 1 0>; };
    };"#;
    let blob = dts(source);
    let tree = Tree::parse(&blob).unwrap();
    let of = |path| bus::interrupts(&tree, tree.find(path).unwrap()).map_err(|error| error.to_string());
    let intids = |path| of(path).unwrap().iter().map(|one| one.map(|one| one.intid)).collect::<Vec<_>>();
    assert_eq!(intids("/own"), [Some(37), Some(4102), Some(1063)]);
    assert!(of("/own").unwrap()[0].unwrap().is_edge());
    assert_eq!(intids("/bus/deep/a"), [Some(19)]);
    assert_eq!(intids("/extended"), [None, Some(40)]);
    assert!(of("/short").unwrap_err().contains("expected 4 cells after the phandle of /gic"));
    assert!(of("/lost").unwrap_err().starts_with("/lost: property interrupt-parent is missing"));
    assert!(of("/large").unwrap_err().contains("<0x0 0x3dc 0x1>"));
}

#[test]
fn buses_without_a_way_out_are_errors() {
    let lost = PI.replace("ranges = <0x7e000000", "no-ranges = <0x7e000000");
    let error = HostInfo::parse(&dts(&lost)).unwrap_err().to_string();
    assert!(error.starts_with("/soc: property ranges is missing"), "{error}");
    let outside = PI.replace("0x40000000 0 0xff800000 0x800000>", "0x50000000 0 0xff800000 0x800000>");
    let error = HostInfo::parse(&dts(&outside)).unwrap_err().to_string();
    assert!(error.contains("expected a range with address 0x40041000"), "{error}");
}

#[test]
fn ten_thousand_mutants_do_not_panic() {
    let mut good = 0;
    for source in [VIRT, PI] {
        for mutant in Mutations::new(&dts(source), 5_000) {
            match HostInfo::parse(&mutant) {
                Ok(info) => {
                    good += 1;
                    assert!(!info.cpus.is_empty() && !info.memory.is_empty());
                }
                Err(error) => assert!(!error.to_string().is_empty()),
            }
            let _ = console_only(&mutant);
        }
    }
    assert!((100..9_900).contains(&good), "{good} were good");
}

/// The trees QEMU itself writes.
#[test]
fn qemu_describes_itself() {
    for (gic, cpus) in [(2, 4), (3, 3)] {
        let file = std::env::temp_dir().join(format!("keel-host-info-{}-{gic}.dtb", std::process::id()));
        let machine = format!("virt,virtualization=on,gic-version={gic},dumpdtb={}", file.display());
        let mut qemu = Command::new("qemu-system-aarch64");
        qemu.args(["-M", &machine, "-cpu", "max", "-m", "3G", "-nic", "none", "-display", "none"]);
        qemu.args(["-smp", &cpus.to_string()]);
        let Ok(output) = qemu.output() else {
            std::eprintln!("skipped: qemu-system-aarch64 is not installed");
            return;
        };
        let dtb = std::fs::read(&file).unwrap_or_else(|error| panic!("{error}: {output:?}"));
        let _ = std::fs::remove_file(&file);
        let info = HostInfo::parse(&dtb).unwrap();
        assert_eq!(info.memory, [span(0x4000_0000, 3 << 30)]);
        assert_eq!(info.cpus.len(), cpus);
        assert_eq!(info.console.unwrap().interrupt.unwrap().intid, 33);
        assert_eq!(info.psci.unwrap().conduit, Conduit::Smc);
        assert_eq!(info.warnings, [""; 0]);
        assert_eq!(matches!(info.gic, Gic::V2(_)), gic == 2);
    }
}
