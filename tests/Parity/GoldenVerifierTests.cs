using Megatron.Compute.Configuration;
using Megatron.Compute.Native;
using Megatron.Compute.Training;
using Megatron.Testing;

namespace Megatron.Parity.Tests;

public sealed class GoldenVerifierTests
{
    public GoldenVerifierTests() => TorchTestSetup.EnsureLoaded();

    public static TheoryData<string> DenseModels => ["qwen2.5-dense", "qwen3-dense", "llama3.1-dense"];

    [Theory, MemberData(nameof(DenseModels))]
    public void Verify_DenseModelInFp32_EveryCheckPasses(string model) => AssertPasses(model, new TrainingConfig());

    [Theory, MemberData(nameof(DenseModels))]
    public void Verify_WithAccumulationAndRecompute_EveryCheckPasses(string model) =>
        AssertPasses(model, new TrainingConfig { MicroBatchSize = 4, RecomputeGranularity = "full", RecomputeMethod = "uniform", RecomputeNumLayers = 2 });

    [Theory]
    [InlineData("qwen2.5-dense", 4, 2, 2, true)]
    [InlineData("qwen3-dense", 4, 4, 1, true)]
    [InlineData("llama3.1-dense", 4, 1, 4, false)]
    [InlineData("qwen2.5-dense", 4, 1, 2, false)]
    public void Verify_OnSeveralRanks_EveryCheckPasses(string model, int worldSize, int tensor, int pipeline, bool sequence) => AssertPasses(
        model, new TrainingConfig { TensorModelParallelSize = tensor, PipelineModelParallelSize = pipeline, SequenceParallel = sequence }, worldSize);

    [Theory]
    [InlineData("qwen2.5-dense", 2, "a2a")]
    [InlineData("llama3.1-dense", 4, "p2p")]
    public void Verify_OnContextParallelRanks_EveryCheckPasses(string model, int ranks, string exchange) =>
        AssertPasses(model, new TrainingConfig { ContextParallelSize = ranks, CpCommType = exchange }, ranks);

    private static void AssertPasses(string model, TrainingConfig config, int worldSize = 1)
    {
        using var leaks = LeakCheck.Start();
        var checks = GoldenRun.Run(
            config with { Golden = Repository.Asset("golden", model) }, worldSize, RankEnvironment.InProcess(new LibTorchOptions(), TimeProvider.System, worldSize));
        Assert.Equal(7, checks.Count);
        foreach (var check in checks) TestContext.Current.TestOutputHelper?.WriteLine($"{check.Name}: {check.Difference:E2} (allowed {check.Tolerance:E0}, {check.Measure}) {check.Worst}");
        Assert.All(checks, check => Assert.True(check.IsPassed, $"{model} {check.Name}: {check.Difference:E3} > {check.Tolerance:E1} {check.Worst}"));
    }
}
