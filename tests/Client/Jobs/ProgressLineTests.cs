using Megatron.Client.Jobs;

namespace Megatron.Client.Tests.Jobs;

public sealed class ProgressLineTests
{
    [Theory]
    [InlineData(0, "[------------------------------] 0/200 0 %  0.50 s/it  1:40 left  loss 5.1235")]
    [InlineData(50, "[#######-----------------------] 50/200 25 %  0.50 s/it  1:15 left  loss 5.1235")]
    [InlineData(200, "[##############################] 200/200 100 %  0.50 s/it  0:00 left  loss 5.1235")]
    public void Text_Iteration_BarAndTimeLeft(long iteration, string expected) =>
        Assert.Equal(expected, ProgressLine.Text(iteration, 200, 0.5, 5.12345678));

    [Fact]
    public void Text_Long_ShowsHours() => Assert.Contains("  27:46:39 left", ProgressLine.Text(1, 100_000, 1, 1), StringComparison.Ordinal);

    [Fact]
    public void Show_NarrowTerminal_StaysOnOneLineAndIsCleared()
    {
        using var output = new StringWriter();
        var line = new ProgressLine(output, columns: 20);
        line.Hide();
        Assert.Equal("", output.ToString());
        line.Show(1, 10, TimeSpan.FromSeconds(1), 2);
        line.Hide();
        // One column stays free: a terminal would wrap after the last.
        Assert.Equal("\r\e[2K[###---------------\r\e[2K", output.ToString());
    }
}
