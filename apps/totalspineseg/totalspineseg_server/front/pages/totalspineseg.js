// Served with OHIF: what the changed places of its bundle call. See totalspineseg_server/front/bundle.py.
(function () {
  'use strict';
  const COLORS = /*COLORS*/{};
  const TITLE = 'TotalSpineSeg';
  const READY_MS = 250;
  const REVIEW = '_review';
  const SHOWN_MS = 20000;

  const BRUSH_MM = { min: 0.5, max: 30, step: 0.5, value: 4 };

  // One tool of the toolbox in its two shapes.
  function brush(id, icon, label, toolNames) {
    return {
      id,
      icon,
      label,
      evaluate: { name: 'evaluate.cornerstone.segmentation', toolNames },
      options: [
        {
          id: `${id}-radius`,
          name: 'Radius (mm)',
          type: 'range',
          ...BRUSH_MM,
          commands: { commandName: 'setBrushSize', commandOptions: { toolNames } },
        },
        {
          id: `${id}-shape`,
          name: 'Shape',
          type: 'radio',
          value: toolNames[0],
          values: [
            { value: toolNames[0], label: 'Circle' },
            { value: toolNames[1], label: 'Sphere' },
          ],
          commands: 'setToolActiveToolbar',
        },
      ],
    };
  }

  function notify(message, type) {
    window.services.uiNotificationService.show({ title: TITLE, message, type, duration: SHOWN_MS });
  }

  // The picture must be there before segments can be laid over it.
  function shown(panel) {
    try {
      const services = panel.props.servicesManager.services;
      const { viewport, displaySet } = panel.getActiveViewportInfo();
      const data = services.cornerstoneViewportService.getViewportInfo(viewport.viewportId)?.viewportData?.data;
      const volume = data && data[0] && data[0].volume;
      return Boolean(displaySet && volume && volume.loadStatus && volume.loadStatus.loaded);
    } catch (error) {
      return false;
    }
  }

  window.totalspineseg = {
    // The panel's toolbox expects groups of these two names.
    tools: [
      {
        id: 'BrushTools',
        uiType: 'ohif.buttonGroup',
        props: {
          groupId: 'BrushTools',
          items: [
            brush('Brush', 'icon-tool-brush', 'Brush', ['CircularBrush', 'SphereBrush']),
            brush('Eraser', 'icon-tool-eraser', 'Eraser', ['CircularEraser', 'SphereEraser']),
          ],
        },
      },
      {
        id: 'Shapes',
        uiType: 'ohif.radioGroup',
        props: {
          icon: 'icon-tool-shape',
          label: 'Scissors',
          evaluate: { name: 'evaluate.cornerstone.segmentation', toolNames: ['CircleScissors', 'RectangleScissors'] },
          options: [
            {
              id: 'scissors-shape',
              name: 'Shape',
              type: 'radio',
              value: 'CircleScissors',
              values: [
                { value: 'CircleScissors', label: 'Circle' },
                { value: 'RectangleScissors', label: 'Rectangle' },
              ],
              commands: 'setToolActiveToolbar',
            },
          ],
        },
      },
    ],

    color(label) {
      const rgb = COLORS[label.toLowerCase()];
      return rgb ? { r: rgb[0], g: rgb[1], b: rgb[2] } : null;
    },

    // The models of the server but the review; the panel looks at both lists.
    offered(info) {
      const names = Object.keys(info.models).filter(name => !name.endsWith(REVIEW));
      info.models = Object.fromEntries(names.map(name => [name, info.models[name]]));
      return info.models;
    },

    warning(createElement, info) {
      return info.warning && createElement('p', { id: 'totalspineseg-warning', style: { color: '#fbbf24' } }, info.warning);
    },

    async ready(panel) {
      while (!shown(panel)) {
        await new Promise(resolve => setTimeout(resolve, READY_MS));
      }
    },

    // The one sentence in which the server said why.
    reason(response) {
      try {
        const data = response.response.data;
        const text = data instanceof ArrayBuffer ? new TextDecoder().decode(data) : JSON.stringify(data);
        return JSON.parse(text).detail;
      } catch (error) {
        return null;
      }
    },

    // The server has judged the segmentation by the time the PACS has it.
    async stored(report) {
      const response = await fetch(`/submissions/${encodeURIComponent(report.SOPInstanceUID)}`);
      const outcome = response.ok ? await response.json() : { message: '', status: 'refused' };
      const message = outcome.message || 'The PACS has the segmentation, but the server did not count it.';
      notify(message, { accepted: 'success', prediction: 'info' }[outcome.status] || 'error');
    },
  };
})();
