using Megatron.Compute.Configuration;
using Megatron.Compute.PipelineParallel;
using Megatron.Compute.Training;
using Megatron.Testing;

namespace Megatron.Compute.Tests.Training;

public sealed class StageWorkTests
{
    private static readonly TrainingConfig config = new() { PipelineModelParallelSize = 2, PipelineSchedule = "zero_bubble" };
    private static readonly ModelConfig model = TestModels.Config with { NumLayers = 8 };
    private static readonly StageWork work = new(RunSettings.Partition(config, model).LayoutsOf(1), RunSettings.Schedule(config));

    [Fact]
    public void WorkOf_LayersOfTheModelHere_AreTakenAsTheyWereHanded() =>
        Assert.Equal(work, RankSetup.WorkOf(Start(work), config, model, "/model", stage: 1));

    [Fact]
    public void WorkOf_AModelWithOtherLayers_IsRefusedInOneSentence()
    {
        var problem = Assert.Throws<ConfigException>(() => RankSetup.WorkOf(Start(work), config, model with { NumLayers = 6 }, "/model", stage: 1));
        Assert.Equal(
            "JOB005 Rank 3 was given the layers 4-7, but by the model in /model on its node pipeline stage 1 has the layers 3-5; give all nodes the same model folder.",
            problem.Message);
    }

    private static StartRank Start(StageWork handed) => new(new AttemptId("job", 1), "{}", 3, 4, 3, "local:x", null) { Work = handed };
}
