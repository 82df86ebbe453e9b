using System.Globalization;
using System.Security.Cryptography;
using System.Text.Json;

namespace Megatron.Faults;

/// <summary>R6: a run that was killed ends with the bits of a run that nobody disturbed, or close to it where the number of replicas changes the sums.</summary>
/// <param name="random">Chooses the step of each fault.</param>
/// <param name="log">Where each run is told.</param>
/// <param name="cancellation">Ends the scenario.</param>
public sealed class BitwiseScenario(Random random, TextWriter log, CancellationToken cancellation)
{
    private const int NumSteps = 40;

    private const double Tolerance = 1e-5;

    /// <summary>Runs of <see cref="NumSteps"/> steps with one or two faults each, compared with one run without.</summary>
    public async Task<IReadOnlyList<GoalResult>> RunAsync(int repetitions) =>
    [
        await CompareAsync("R6", "same layout: losses and final weights equal an undisturbed run", numSilos: 3, isBitwise: true, repetitions),
        await CompareAsync("R6d", "replicas 2 → 1 → 2: the same batches, losses within 1e-5 of an undisturbed run", numSilos: 2, isBitwise: false, repetitions),
        await CompareAsync("R6e", "replicas 2 → 1 → 2 with --logical_data_shards 2: as R6", numSilos: 2, isBitwise: true, repetitions, "--logical_data_shards", "2"),
        await CompareAsync("R6s", "likewise, from peer snapshots each step", numSilos: 2, isBitwise: true, repetitions, "--logical_data_shards", "2", "--peer_snapshot_interval", "1"),
    ];

    private async Task<GoalResult> CompareAsync(string id, string what, int numSilos, bool isBitwise, int repetitions, params string[] more)
    {
        await using var cluster = await FaultCluster.StartAsync(numSilos, 1, cancellation);
        string[] words = ["--train_iters", NumSteps.ToString(CultureInfo.InvariantCulture), "--save_interval", "10", .. more];
        var expected = await RunAsync(cluster, "undisturbed", words, faults: []);
        var (numGood, largest) = (0, 0.0);
        for (int i = 0; i < repetitions; i++)
        {
            int[] faults = i % 2 == 0 ? [random.Next(3, NumSteps - 5)] : [random.Next(3, 18), random.Next(21, NumSteps - 5)];
            string job = string.Create(CultureInfo.InvariantCulture, $"{id.ToLowerInvariant()}-{i}");
            var actual = await RunAsync(cluster, job, words, faults);
            var problems = HistoryChecker.CheckLedger(cluster.Ledger(job));
            double difference = actual.DifferenceTo(expected);
            bool isGood = problems.Count == 0 && actual.Batches.SequenceEqual(expected.Batches)
                && (isBitwise ? actual.LossBits.SequenceEqual(expected.LossBits) && actual.Weights == expected.Weights : difference <= Tolerance);
            numGood += isGood ? 1 : 0;
            largest = Math.Max(largest, difference);
            log.WriteLine(string.Create(CultureInfo.InvariantCulture,
                $"{id} {i + 1}: kills at steps {string.Join(", ", faults)}: {(isGood ? "equal" : "DIFFERENT")}, losses differ by {difference:0.0e+0} at most {string.Join("; ", problems)}"));
        }
        string measured = string.Create(CultureInfo.InvariantCulture, $"{numGood} of {repetitions} runs{(isBitwise ? " bitwise equal" : $", largest difference {largest:0.0e+0}")}");
        return new(id, what, "100 % of runs", measured, repetitions, numGood == repetitions);
    }

    private async Task<Outcome> RunAsync(FaultCluster cluster, string job, string[] words, int[] faults)
    {
        await using var console = cluster.Submit(job, 2, words);
        int turn = 0;
        foreach (int step in faults)
        {
            await console.WaitForStepAsync(step, FaultCluster.Patience, cancellation);
            var silo = cluster.Processes.Silos[turn++ % cluster.Processes.Silos.Count];
            await silo.KillAsync();
            silo.StartAgain();
            await silo.ReadyAsync(cancellation);
        }
        int code = await console.Process.ExitAsync(FaultCluster.Patience * 2, cancellation);
        if (code != 0) throw new InvalidOperationException($"job {job} ended with {code}:\n{console.Process.Transcript}");
        // Of a step that was done in several attempts the last one counts.
        var steps = new SortedDictionary<long, JsonElement>();
        foreach (JsonElement line in cluster.Ledger(job)) steps[line.GetProperty("step").GetInt64()] = line;
        string[] Texts(string name) => [.. steps.Values.Select(line => line.GetProperty(name).GetString() ?? "")];
        return new Outcome(Texts("batch"), Texts("loss_bits"), [.. steps.Values.Select(line => line.GetProperty("loss").GetDouble())],
            HashOfWeights(Path.Combine(cluster.RunFolder(job), string.Create(CultureInfo.InvariantCulture, $"iter_{NumSteps:D7}"))));
    }

    private static string HashOfWeights(string checkpoint)
    {
        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        foreach (string file in Directory.GetFiles(checkpoint, "model*.safetensors").Order(StringComparer.Ordinal)) hash.AppendData(File.ReadAllBytes(file));
        return Convert.ToHexString(hash.GetHashAndReset());
    }

    /// <summary>What a run did, by step, and what came of it.</summary>
    private sealed record Outcome(string[] Batches, string[] LossBits, double[] Losses, string Weights)
    {
        /// <summary>The largest relative difference between two losses of one step; infinite when steps are missing.</summary>
        public double DifferenceTo(Outcome expected) => Losses.Length != expected.Losses.Length
            ? double.PositiveInfinity
            : Losses.Zip(expected.Losses, (own, other) => Math.Abs(own - other) / Math.Abs(other)).Max();
    }
}
