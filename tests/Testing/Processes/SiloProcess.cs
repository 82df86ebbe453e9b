using System.Globalization;

namespace Megatron.Testing.Processes;

/// <summary>A <c>megatron silo</c> process. Its ports stay the same over restarts, as those of a node do.</summary>
public sealed class SiloProcess : IAsyncDisposable
{
    private static readonly TimeSpan startPatience = TimeSpan.FromSeconds(60);

    private readonly IReadOnlyList<string> words;
    private readonly SiloSurroundings surroundings;
    private ProgramProcess process;

    private SiloProcess(string node, int siloPort, IReadOnlyList<string> words, SiloSurroundings surroundings)
    {
        (Node, SiloPort) = (node, siloPort);
        this.words = words;
        this.surroundings = surroundings;
        process = ProgramProcess.StartMegatron(words, surroundings.Environment, surroundings.Prefix);
    }

    /// <summary>Name of its node.</summary>
    public string Node { get; }

    /// <summary>Its port for other silos.</summary>
    public int SiloPort { get; }

    /// <summary>The process that runs now.</summary>
    public ProgramProcess Process => process;

    /// <summary>Starts a silo and returns at once; await <see cref="ReadyAsync"/>.</summary>
    /// <param name="cluster">Address of the cluster.</param>
    /// <param name="numDevices">Ranks that it can host.</param>
    /// <param name="logFolder">Folder of its log.</param>
    /// <param name="membership">How fast silos that do not answer are given up: tight or relaxed.</param>
    /// <param name="surroundings">Where it runs.</param>
    public static SiloProcess Start(string cluster, string node, int numDevices, string logFolder, string membership, SiloSurroundings surroundings)
    {
        int[] ports = FreePorts.Take(2);
        string devices = string.Join(',', Enumerable.Range(0, numDevices).Select(index => index.ToString(CultureInfo.InvariantCulture)));
        return new SiloProcess(node, ports[0],
        [
            "silo", "--cluster", cluster, "--node_name", node, "--silo_devices", devices, "--silo_address", surroundings.Address,
            "--silo_port", ports[0].ToString(CultureInfo.InvariantCulture), "--gateway_port", ports[1].ToString(CultureInfo.InvariantCulture),
            "--log_folder", logFolder, "--membership", membership,
        ], surroundings);
    }

    /// <summary>Returns when the silo takes part in the cluster.</summary>
    public Task ReadyAsync(CancellationToken cancellation) => process.WaitForLineAsync(
        $"silo {Node} ready", line => line.Text.Contains(" is ready", StringComparison.Ordinal), startPatience, cancellation);

    /// <summary>Ends it with SIGKILL and waits until it is gone.</summary>
    public async Task KillAsync() => await process.DisposeAsync();

    /// <summary>Starts it again after its end, on the same ports.</summary>
    public void StartAgain() => process = ProgramProcess.StartMegatron(words, surroundings.Environment, surroundings.Prefix);

    /// <inheritdoc/>
    public ValueTask DisposeAsync() => process.DisposeAsync();
}
