using Megatron.Compute.PipelineParallel;

namespace Megatron.Compute.Tests.PipelineParallel;

public sealed class PipelineDiagramTests
{
    [Fact]
    public void Draw_OneForwardOneBackward_ShowsOrderIdleTimeAndSavedActivations() => Assert.Equal(
        [
            "pipeline: 2 stages, 3 micro-batches, bubble 18.2 % of 11 units; activations saved at most, in micro-batches of a stage: 2, 1",
            "  stage 0  F0 F1 .  B0 W0 F2 B1 W1 .  B2 W2",
            "  stage 1  .  F0 B0 W0 F1 B1 W1 F2 B2 W2 .",
        ],
        PipelineDiagram.Draw(PipelineScheduleKind.OneForwardOneBackward, new PipelineShape(2, 1), 3));

    [Fact]
    public void Draw_Interleaved_NamesChunks()
    {
        var lines = PipelineDiagram.Draw(PipelineScheduleKind.Auto, new PipelineShape(2, 2), 4);
        Assert.StartsWith("  stage 0  F0a F1a F0b F1b ", lines[1]);
        Assert.Contains("2 stages of 2 chunks", lines[0]);
        Assert.Contains("of a chunk: 5, 3", lines[0]);
    }

    [Fact]
    public void Draw_LongStep_IsCutInTheMiddle()
    {
        var lines = PipelineDiagram.Draw(PipelineScheduleKind.ZeroBubble, new PipelineShape(16, 1), 64);
        Assert.Equal(17, lines.Count);
        Assert.All(lines.Skip(1), line => Assert.True(line.Length <= 170 && line.Contains("... "), line));
        Assert.Contains("bubble 7.2 %", lines[0]); // (p − 1) / (3m + p − 1)
    }
}
