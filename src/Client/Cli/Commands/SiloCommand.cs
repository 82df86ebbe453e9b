using System.Globalization;
using System.Net;
using Megatron.Client.Cluster;
using Megatron.Client.Jobs;
using Megatron.Compute.Configuration;
using Megatron.Compute.Native;
using Megatron.Silo;

namespace Megatron.Client.Cli.Commands;

/// <summary>
/// <c>megatron silo</c>: hosts the devices of this node for a cluster until it is told to stop. SIGTERM or Ctrl-C drains it: jobs save, the
/// silo leaves, exit code 0.
/// </summary>
/// <param name="console">Where to print.</param>
public sealed class SiloCommand(CommandConsole console) : IVerbCommand
{
    /// <summary>What it reads.</summary>
    public static IReadOnlyList<WordOption> Options { get; } =
    [
        new("cluster", "redis://host:port", "Redis of the cluster; /N chooses a database, ?cluster=NAME one of several clusters."),
        new("node_name", "text", "Name of this node, unique in the cluster; default: the host name."),
        new("silo_devices", "0,1", "Devices that this silo owns; default: NPROC_PER_NODE of them, else all GPUs, else one for the CPU."),
        new("silo_address", "address", "Address that other silos and consoles reach this one by; default: the one towards the Redis."),
        new("silo_port", "port", "Port for other silos; default: a free one. Fixed, a restarted silo replaces its predecessor at once."),
        new("gateway_port", "port", "Port for consoles; default: a free one."),
        new("log_folder", "folder", "Folder of the JSON log files; default: none are written."),
        new("supervise", "", "Stay as a parent process that starts the silo again when it ends otherwise than asked."),
        new("membership", "tight|relaxed", "How fast a silent silo is declared dead: within 3 s, or 7 s for networks with pauses."),
    ];

    /// <inheritdoc/>
    public async Task<int> RunAsync(ParsedOptions options, CancellationToken cancellationToken)
    {
        var words = WordOptions.Parse(options.Words, Options);
        if (words.Positional.Count > 0)
            throw new ConfigException("CFG012", $"megatron silo {words.Positional[0]} is not known; give options as --name value.");
        var settings = await ReadAsync(words, options.Environment, cancellationToken);
        using var signals = StopSignals.OfThisProcess();
        using var stop = cancellationToken.Register(signals.Raise);
        if (words.Flag("supervise"))
            return await Supervisor(options.Words).RunAsync(signals.StopRequested);
        SiloHost silo;
        try
        {
            silo = await SiloHost.StartAsync(
                settings, services => SiloWorkers.Of(settings, options.Environment.LibTorch, services, TimeProvider.System), cancellationToken);
        }
        catch (ClusterLostException lost)
        {
            console.Error.WriteLine("error: CTRL007 " + lost.Message);
            return ExitCode.Failed;
        }
        console.Out.WriteLine($"silo {settings.NodeName} of {settings.Cluster?.Redis} is ready: {Devices(settings)}");
        console.Out.Flush();
        if (await Task.WhenAny(signals.StopRequested, silo.Ended) == silo.Ended)
        {
            // What still runs here cannot be reached or must not go on: the process ends without waiting for it.
            var end = await silo.Ended;
            console.Error.WriteLine("error: CTRL008 " + end.Reason);
            if (end.CanLeave)
                await silo.LeaveAsync();
            return ExitCode.Failed;
        }
        console.Out.WriteLine($"silo {settings.NodeName} is leaving: its jobs save and go on elsewhere, or wait.");
        console.Out.Flush();
        await silo.DrainAsync();
        await silo.DisposeAsync();
        return ExitCode.Ok;
    }

    // The same program with the same words, less the wish to be supervised.
    private SiloSupervisor Supervisor(IReadOnlyList<string> words)
    {
        string program = Environment.ProcessPath ?? throw new InvalidOperationException("the program has no path");
        IEnumerable<string> self = Path.GetFileNameWithoutExtension(program) == "dotnet" ? [typeof(SiloCommand).Assembly.Location] : [];
        return new SiloSupervisor(
            program, [.. self, "silo", .. words.Where(word => word.Split('=')[0] != "--supervise")], TimeProvider.System, console.Error.WriteLine);
    }

    private static async Task<SiloOptions> ReadAsync(WordOptions words, LaunchEnvironment environment, CancellationToken cancellation)
    {
        var cluster = ClusterAddress.Parse(words.Required("cluster", "give redis://host:port of the cluster's Redis"));
        int siloPort = words.Number("silo_port", 1, ushort.MaxValue) ?? 0;
        int gatewayPort = words.Number("gateway_port", 1, ushort.MaxValue) ?? 0;
        var membership = words.Choice("membership", "tight", "relaxed") == "tight" ? MembershipProfile.Tight : MembershipProfile.Relaxed;
        string node = words.Text("node_name") ?? Environment.MachineName;
        if (node.Length == 0 || node.Any(letter => !char.IsAsciiLetterOrDigit(letter) && letter is not ('-' or '_' or '.')))
            throw new ConfigException("CFG005", $"--node_name = {node} is no name; use letters, digits, '-', '_' and '.'.");
        // The driver is initialized when GPUs are counted, and reads then how modules are loaded: as for several, which may be found.
        var devices = SiloSetup.Devices(
            words.Text("silo_devices"), environment, () => LibTorch.Load(new LibTorchOptions { Folder = environment.LibTorch, OwnsSeveralGpus = true }));
        var address = await ListenAddressAsync(words, cluster, cancellation);
        SiloSetup.RequireFree("--silo_port", address, siloPort);
        SiloSetup.RequireFree("--gateway_port", address, gatewayPort);
        if (siloPort != 0 && siloPort == gatewayPort)
            throw new ConfigException("NET001", string.Create(CultureInfo.InvariantCulture, $"--silo_port and --gateway_port are both {siloPort}; choose two ports."));
        await RedisCheck.RequireAsync(cluster, cancellation);
        return new SiloOptions
        {
            NodeName = node,
            Devices = devices,
            LogFolder = words.Text("log_folder"),
            Membership = membership,
            Cluster = new ClusterJoin { Redis = cluster, Address = address, SiloPort = siloPort, GatewayPort = gatewayPort },
        };
    }

    private static async Task<IPAddress> ListenAddressAsync(WordOptions words, ClusterAddress cluster, CancellationToken cancellation) =>
        words.Text("silo_address") is { } listen
            ? await SiloSetup.ResolveAsync("--silo_address", listen, cancellation)
            : SiloSetup.AddressTowards(await SiloSetup.ResolveAsync("--cluster", cluster.Host, cancellation));

    private static string Devices(SiloOptions settings) => string.Create(CultureInfo.InvariantCulture,
        $"{settings.Devices.Count} device{(settings.Devices.Count == 1 ? "" : "s")} ({string.Join(',', settings.Devices)})");
}
