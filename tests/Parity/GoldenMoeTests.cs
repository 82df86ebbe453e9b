using Megatron.Compute.Configuration;
using Megatron.Compute.Training;
using Megatron.Testing;

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

    private void AssertPasses(string model, TrainingConfig config)
    {
        using var leaks = LeakCheck.Start();
        using var verifier = new GoldenVerifier(config with { Golden = Repository.Asset("golden", model) }, worldSize: 1);
        var checks = verifier.Run();
        foreach (var check in checks) output.WriteLine($"{check.Name}: {check.Difference:E2} (allowed {check.Tolerance:E0}, {check.Measure}) {check.Worst}");
        Assert.Equal(10, checks.Count);
        Assert.All(checks, check => Assert.True(check.IsPassed, $"{model} {check.Name}: {check.Difference:E3} > {check.Tolerance:E1} {check.Worst}"));
    }
}
