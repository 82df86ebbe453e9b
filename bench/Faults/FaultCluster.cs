using System.Globalization;
using System.Text.Json;
using Megatron.Testing;
using Megatron.Testing.Processes;

namespace Megatron.Faults;

/// <summary>A cluster of processes with a small model and data to train on, and the jobs that the scenarios run there.</summary>
public sealed class FaultCluster : IAsyncDisposable
{
    /// <summary>Longer than anything a scenario waits for: what takes longer is a failure.</summary>
    public static readonly TimeSpan Patience = TimeSpan.FromSeconds(90);

    private readonly TemporaryFolder folder = new();
    private readonly CancellationToken cancellation;

    private FaultCluster(ProcessCluster processes, CancellationToken cancellation) => (Processes, this.cancellation) = (processes, cancellation);

    /// <summary>Folder that gets the log files of every cluster at its end; null: nobody wants them.</summary>
    public static string? LogsTo { get; set; }

    /// <summary>Where ranks compute: cpu, or cuda, where all silos share the first GPU.</summary>
    public static string Device { get; set; } = "cpu";

    /// <summary>Redis and silos.</summary>
    public ProcessCluster Processes { get; }

    /// <summary>Starts a Redis and silos, and writes the model and the data.</summary>
    /// <param name="membership">As for <see cref="ProcessCluster.StartAsync"/>.</param>
    public static async Task<FaultCluster> StartAsync(int numSilos, int devicesPerSilo, CancellationToken cancellation, string membership = "tight") =>
        Prepare(await ProcessCluster.StartAsync(numSilos, devicesPerSilo, cancellation, membership, sharesGpu: Device == "cuda"), cancellation);

    /// <summary>Likewise, three silos with a device each in namespaces of their own.</summary>
    public static async Task<FaultCluster> StartAsync(IsolatedNetwork network, CancellationToken cancellation) =>
        Prepare(await ProcessCluster.StartAsync(3, 1, cancellation, "tight", network, sharesGpu: Device == "cuda"), cancellation);

    /// <summary>The folder of a job's run.</summary>
    public string RunFolder(string jobId) => folder.Combine("out", jobId);

    /// <summary>Submits a job and follows it with a console of its own.</summary>
    /// <param name="numRanks">Ranks asked for.</param>
    /// <param name="more">Further options; they win.</param>
    public ConsoleProcess Submit(string jobId, int numRanks, params IEnumerable<string> more) => ConsoleProcess.Start(
        [.. JobWords(jobId), .. more], new Dictionary<string, string?> { ["NPROC_PER_NODE"] = numRanks.ToString(CultureInfo.InvariantCulture) });

    /// <summary>The words of the submission.</summary>
    public IReadOnlyList<string> JobWords(string jobId) =>
    [
        "sft", "--cluster", Processes.Address, "--job_id", jobId, "--model", folder.Combine("model"), "--dataset", folder.Combine("rows.jsonl"),
        "--save", folder.Combine("out"), "--global_batch_size", "8", "--micro_batch_size", "2", "--lr", "1e-3", "--lr_decay_style", "constant",
        "--log_interval", "1", "--eval_iters", "0", "--split_dataset_ratio", "0", "--train_iters", "1000000", "--save_interval", "5",
        "--save_total_limit", "3", "--max_restarts", "1000", "--report_to", "none", "--device", Device,
    ];

    /// <summary>
    /// Waits until every silo runs and the job has done a few steps on all its ranks; returns the last of them.
    /// </summary>
    public async Task<long> SettleAsync(ConsoleProcess console, int numSteps = 3)
    {
        int from = console.Process.Lines.Count;
        long first = 0;
        var (item, _) = await console.WaitForAsync("steps of the running job", item =>
        {
            if (ConsoleProcess.IsPhase(item, "Recovering")) first = 0;
            if (!ConsoleProcess.IsStep(item, out long step)) return false;
            if (first == 0 || step < first) first = step;
            return step >= first + numSteps;
        }, Patience, cancellation, from);
        return item.GetProperty("iteration").GetInt64();
    }

    /// <summary>What a job's ledger holds.</summary>
    public IReadOnlyList<JsonElement> Ledger(string jobId)
    {
        string path = Path.Combine(RunFolder(jobId), "ledger.jsonl");
        return File.Exists(path) ? [.. File.ReadLines(path).Where(line => line.EndsWith('}')).Select(line => JsonSerializer.Deserialize<JsonElement>(line))] : [];
    }

    /// <inheritdoc/>
    public async ValueTask DisposeAsync()
    {
        KeepLogs();
        await Processes.DisposeAsync();
        folder.Dispose();
    }

    private void KeepLogs()
    {
        if (LogsTo is null || !Directory.Exists(Processes.LogFolder)) return;
        var target = Directory.CreateDirectory(Path.Combine(LogsTo, Path.GetFileName(folder.Root)));
        foreach (string file in Directory.GetFiles(Processes.LogFolder)) File.Copy(file, Path.Combine(target.FullName, Path.GetFileName(file)), overwrite: true);
    }

    private static FaultCluster Prepare(ProcessCluster processes, CancellationToken cancellation)
    {
        var cluster = new FaultCluster(processes, cancellation);
        TinyModelFolder.Create(cluster.folder.Combine("model"), layers: 2, hidden: 64);
        TinyModelFolder.WriteRows(cluster.folder.Combine("rows.jsonl"), 200);
        return cluster;
    }
}
