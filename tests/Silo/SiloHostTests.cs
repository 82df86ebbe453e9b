using System.Diagnostics;
using System.Globalization;
using System.Text.Json;
using Megatron.Compute.Training;
using Megatron.Grains.Jobs;
using Megatron.Testing;
using Orleans.Configuration;

namespace Megatron.Silo.Tests;

[Collection<Alone>]
public sealed class SiloHostTests
{
    // The goal for a local job is 2 s with real ranks; fake ranks leave half of it to them.
    private static readonly TimeSpan firstStepBudget = TimeSpan.FromSeconds(1);

    [Fact]
    public async Task StartAsync_FirstGrainCallToFirstStep_TakesLessThanASecond()
    {
        var process = Stopwatch.StartNew();
        await using var silo = await SiloHost.StartAsync(SiloOptions.ForLocalJob(1, null), index => new FakeRankWorker(index) { Script = FakeRankWorker.TrainToEnd(1) });
        var started = process.Elapsed;
        var call = Stopwatch.StartNew();
        var job = silo.Grains.GetGrain<IJobGrain>("a");
        await job.Submit(Spec("a", 1));
        var submitted = call.Elapsed;
        await foreach (var item in job.Watch(1))
        {
            if (item is JobStepDone)
                break;
        }
        var firstStep = call.Elapsed;
        TestContext.Current.SendDiagnosticMessage(string.Create(CultureInfo.InvariantCulture,
            $"silo up {started.TotalMilliseconds:F0} ms, first call {submitted.TotalMilliseconds:F0} ms, first call to first step {firstStep.TotalMilliseconds:F0} ms"));
        Assert.True(firstStep < firstStepBudget, $"first grain call to first step took {firstStep}");
    }

    [Fact]
    public async Task StartAsync_TwoSilosAtOnce_AreTwoClusters()
    {
        Func<int, IRankWorker> workers = index => new FakeRankWorker(index) { Script = FakeRankWorker.TrainToEnd(2) };
        var silos = await Task.WhenAll(Enumerable.Range(0, 2).Select(_ => SiloHost.StartAsync(SiloOptions.ForLocalJob(2, null), workers)));
        foreach (var silo in silos)
        {
            var answer = await silo.Grains.GetGrain<IJobGrain>("same").Submit(Spec("same", 2));
            Assert.Equal("submitted", answer.Message);
        }
        foreach (var silo in silos)
            await silo.DisposeAsync();
    }

    [Fact]
    public async Task DisposeAsync_EndsTheWorkersAndLeavesALogWithJobRankAndStep()
    {
        string folder = Directory.CreateTempSubdirectory("megatron-silo-").FullName;
        List<FakeRankWorker> workers = [];
        await using (var silo = await SiloHost.StartAsync(SiloOptions.ForLocalJob(1, folder), index =>
        {
            var worker = new FakeRankWorker(index) { Script = FakeRankWorker.TrainToEnd(2) };
            workers.Add(worker);
            return worker;
        }))
        {
            var job = silo.Grains.GetGrain<IJobGrain>("a");
            await job.Submit(Spec("a", 1));
            await foreach (var _ in job.Watch(1)) { }
        }
        Assert.True(Assert.Single(workers).IsDisposed);
        var lines = File.ReadAllLines(Assert.Single(Directory.GetFiles(folder, "silo-local-*.clef"))).Select(line => JsonDocument.Parse(line).RootElement).ToList();
        Assert.Contains(lines, line => line.TryGetProperty("Iteration", out var step) && step.GetInt64() == 2 && line.GetProperty("JobId").GetString() == "a");
        Assert.Contains(lines, line => line.TryGetProperty("Rank", out var rank) && rank.GetInt32() == 0);
        Directory.Delete(folder, recursive: true);
    }

    [Fact]
    public void MembershipProfile_Tight_ClampsTheProbeTimeout()
    {
        var options = new ClusterMembershipOptions();
        MembershipProfile.Tight.ApplyTo(options);
        Assert.Equal(TimeSpan.FromMilliseconds(650), options.ProbeTimeout);
        Assert.Equal(TimeSpan.FromMilliseconds(650), options.MinProbeTimeout);
        Assert.Equal(TimeSpan.FromMilliseconds(650), options.MaxProbeTimeout);
        Assert.Equal((2, 2), (options.NumMissedProbesLimit, options.NumVotesForDeathDeclaration));
    }

    [Fact]
    public void MembershipProfile_OfALocalJob_NeverEvictsAndHardlyProbes()
    {
        var options = new ClusterMembershipOptions();
        SiloOptions.ForLocalJob(1, null).Membership.ApplyTo(options);
        Assert.False(options.EvictWhenMaxJoinAttemptTimeExceeded);
        Assert.True(options.MaxJoinAttemptTime >= TimeSpan.FromHours(1));
        Assert.True(options.ProbeTimeout >= TimeSpan.FromMinutes(1) && options.TableRefreshTimeout >= TimeSpan.FromMinutes(1));
    }

    private static JobSpec Spec(string id, int worldSize) =>
        new() { JobId = id, Name = id, ConfigJson = "{}", WorldSize = worldSize, OutputFolder = "/nowhere" };
}
