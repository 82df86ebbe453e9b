using System.Collections.Concurrent;
using Megatron.Compute.Configuration;
using Megatron.Compute.Native;
using Megatron.Compute.PipelineParallel;
using Megatron.Compute.Training;
using Megatron.Testing;

namespace Megatron.Compute.Tests.Training;

/// <summary>Which operations of a run may overlap with what the rank does (docs/adr/0012).</summary>
public sealed class WarmupTests
{
    private const int Ranks = 2, LastStep = 4;
    private static readonly AttemptId Attempt = new("job", 1);

    [Fact]
    public void Run_FourSteps_GroupsWarmUpForTwoAndBetweenSteps()
    {
        using var folder = new TemporaryFolder();
        TinyModelFolder.Create(folder.Combine("model"));
        TinyModelFolder.WriteRows(folder.Combine("rows.jsonl"), 32);
        var run = RunPreparation.Prepare(new TrainingConfig
        {
            Model = folder.Combine("model"), Dataset = [folder.Combine("rows.jsonl")], Save = folder.Combine("run"), Template = "qwen3", TorchDtype = "float32", Device = "cpu",
            MicroBatchSize = 1, GlobalBatchSize = 2, TrainIters = 10, Lr = 1e-3, EvalIters = 0, SplitDatasetRatio = 0,
        }, GivenOptions.None, isPretraining: false, Ranks, TimeProvider.System);

        var events = new ConcurrentQueue<(int Step, StartedOperation Operation)>();
        var work = new StageWork(RunSettings.Partition(run.Config, run.Model).LayoutsOf(0), PipelineScheduleKind.Auto);
        var environment = RankEnvironment.InProcess(new LibTorchOptions(), TimeProvider.System, Ranks);
        RankThreads.Run(Ranks, rank =>
        {
            var step = 1;
            using var inbox = new BlockingCollection<RankCommand>();
            var observed = environment with
            {
                ProcessGroups = (start, device) => new ObservedWorld(environment.ProcessGroups(start, device), operation => events.Enqueue((step, operation))),
            };
            using var program = new TrainingRun(new StartRank(Attempt, run.Config.ToJson(), rank, Ranks, rank, "local:job/1", null) { Work = work }, observed);
            program.Run(new RankLink(Attempt, rank, inbox, report =>
            {
                if (report is StepReport done) step = (int)done.Iteration + 1;
                if (step > LastStep) inbox.Add(new StopRank(Attempt, SaveCheckpoint: false, "the test has seen enough"));
            }));
        });

        Assert.All(events.Where(entry => entry.Operation.Group == "dp-cp"), entry => Assert.Equal(entry.Step <= 2, entry.Operation.IsWarmingUp));
        Assert.Equal([1, 2, 3, 4], events.Where(entry => entry.Operation.Group == "dp-cp").Select(entry => entry.Step).Distinct().Order());
        // The decision to go on is taken between two steps; a barrier ends the second, before anybody may run ahead.
        Assert.All(events.Where(entry => entry.Operation is { Group: "world", Operation: "broadcast" }), entry => Assert.True(entry.Operation.IsWarmingUp));
        Assert.Equal([3, 3], events.Where(entry => entry.Operation is { Group: "world", Operation: "barrier" }).Select(entry => entry.Step));
    }
}
