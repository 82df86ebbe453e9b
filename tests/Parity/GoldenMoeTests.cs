using Megatron.Compute.Configuration;
using Megatron.Compute.Data;
using Megatron.Compute.Distributed;
using Megatron.Compute.Models;
using Megatron.Compute.Moe;
using Megatron.Compute.Native;
using Megatron.Compute.Training;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Parity.Tests;

/// <summary>The two models with experts against published-code results, with and without the balance loss.</summary>
public sealed class GoldenMoeTests(ITestOutputHelper output)
{
    public static TheoryData<string> MoeModels => ["qwen3-moe", "qwen2-moe"];

    [Theory, MemberData(nameof(MoeModels))]
    public void Verify_MoeModelInFp32_EveryCheckPasses(string model) => AssertPasses(model, new TrainingConfig());

    [Theory, MemberData(nameof(MoeModels))]
    public void Verify_WithAccumulationAndRecompute_EveryCheckPasses(string model) => AssertPasses(
        model, new TrainingConfig { MicroBatchSize = 2, RecomputeGranularity = "selective", RecomputeModules = ["core_attn", "layernorm", "moe", "moe_act"] });

    [Theory, MemberData(nameof(MoeModels))]
    public void Verify_GroupedGemmAndDoublePrecisionRouter_EveryCheckPasses(string model) =>
        AssertPasses(model, new TrainingConfig { MicroBatchSize = 8, MoeGroupedGemm = true, MoeRouterDtype = "fp64" });

    [Theory]
    [InlineData("qwen3-moe", LoadBalancing.AuxiliaryLoss, 1)]
    [InlineData("qwen3-moe", LoadBalancing.SequenceAuxiliaryLoss, 8)]
    [InlineData("qwen2-moe", LoadBalancing.AuxiliaryLoss, 8)]
    [InlineData("qwen2-moe", LoadBalancing.SequenceAuxiliaryLoss, 2)]
    public void TrainStep_RowsPaddedTo128_ChangesNeitherRoutingCountsNorLosses(string model, LoadBalancing balancing, int microBatchSize)
    {
        using var leaks = LeakCheck.Start();
        var options = new MoeOptions { LoadBalancing = balancing, AuxLossCoeff = 0.02, ZLossCoeff = 0.001, RouterDtype = ScalarType.Float32 };
        var layout = BatchLayout.SingleRankUnpadded(microBatchSize);
        var plain = Train(model, options, layout);
        var padded = Train(model, options, layout with { PadRowToMultiple = 128, PadTokenId = 7 });
        for (var step = 0; step < plain.Count; step++)
        {
            var (expected, actual) = (plain[step], padded[step]);
            Assert.Equal(expected.TokensPerExpert, actual.TokensPerExpert);
            Assert.Equal(8L * 40 * expected.ExpertsOfAToken * 4, actual.TokensPerExpert.Sum());
            AssertClose(expected.Metrics.LossSum, actual.Metrics.LossSum);
            AssertClose(expected.Metrics.LoadBalancingLoss, actual.Metrics.LoadBalancingLoss);
            AssertClose(expected.Metrics.ZLoss, actual.Metrics.ZLoss);
            AssertClose(expected.Metrics.Optimizer.GradNorm, actual.Metrics.Optimizer.GradNorm);
        }
    }

    /// <summary>Five steps of the golden data; padding comes in another order of summation only.</summary>
    private static List<Step> Train(string name, MoeOptions options, BatchLayout layout)
    {
        using var golden = GoldenFile.Open(Repository.Asset("golden", name));
        var (ids, shape) = golden.ReadIds("steps.input_ids");
        var (labels, _) = golden.ReadIds("steps.labels");
        var source = ArrayBatchSource.Create(ids, labels, (int)shape[1], (int)shape[2], layout);
        var config = HfConfigReader.ReadFolder(golden.Folder).Model;
        using var parallel = ParallelState.SingleRank();
        using var model = new ModelChunks(config, TestModels.Options(ScalarType.Float32) with { Moe = options }, parallel, [StageLayout.Whole(config)]);
        ModelState.LoadWeights(model, golden.Folder, allowRandom: false, seed: 1);
        using var trainer = new Trainer(model, parallel, CPU, RunSettings.Trainer(new TrainingConfig { TorchDtype = "float32", CalculatePerTokenLoss = true }));
        var routing = model.Chunks[0].Routing ?? throw new InvalidOperationException("no experts");
        var steps = new List<Step>();
        for (var i = 0; i < 5; i++)
        {
            var metrics = trainer.TrainStep(source.Get(i), learningRate: 1e-3);
            steps.Add(new Step(metrics, routing.TokensPerExpert.data<long>().ToArray(), config.Moe?.TopK ?? 0));
        }
        return steps;
    }

    private static void AssertClose(double? expected, double? actual)
    {
        Assert.NotNull(expected);
        Assert.NotNull(actual);
        Assert.True(Math.Abs(expected.Value - actual.Value) <= 1e-6 * Math.Abs(expected.Value), $"{actual} instead of {expected}");
    }

    private sealed record Step(StepMetrics Metrics, long[] TokensPerExpert, int ExpertsOfAToken);

    private void AssertPasses(string model, TrainingConfig config)
    {
        using var leaks = LeakCheck.Start();
        var checks = GoldenRun.Run(
            config with { Golden = Repository.Asset("golden", model) }, worldSize: 1, RankEnvironment.InProcess(new LibTorchOptions(), TimeProvider.System, ranks: 1));
        foreach (var check in checks) output.WriteLine($"{check.Name}: {check.Difference:E2} (allowed {check.Tolerance:E0}, {check.Measure}) {check.Worst}");
        Assert.Equal(10, checks.Count);
        Assert.All(checks, check => Assert.True(check.IsPassed, $"{model} {check.Name}: {check.Difference:E3} > {check.Tolerance:E1} {check.Worst}"));
    }
}
